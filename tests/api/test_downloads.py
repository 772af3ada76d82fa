import hashlib

import pytest
from starlette.testclient import TestClient

from core.settings import Settings
from core.storage import Storage
from models.database import Database
from tests.api.driving import error_of, submit, train, upload

CONTENT = bytes(range(256)) * 12_000  # more than one piece of 1 MiB


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"max_file_bytes": 10_000_000})


@pytest.fixture
def url(http: TestClient) -> str:
    return f"/v1/files/{upload(http, CONTENT, 'user_data', 'Ω x.bin')}/content"


def test_a_download_tells_all_that_a_client_needs_to_check_it(http: TestClient, url: str):
    answer = http.get(url)
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert answer.status_code == 200
    assert answer.content == CONTENT
    assert answer.headers["x-content-sha256"] == digest
    assert answer.headers["etag"] == f'"{digest}"'
    assert answer.headers["content-length"] == str(len(CONTENT))
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-disposition"] == "attachment; filename=\"_ x.bin\"; filename*=UTF-8''%CE%A9%20x.bin"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_ranges_conditions_and_nonsense(http: TestClient, url: str):
    size = len(CONTENT)
    etag = http.get(url).headers["etag"]
    for asked, start, end in [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        (f"bytes={2**20 - 5}-{2**20 + 4}", 2**20 - 5, 2**20 + 5),
        (f"bytes={size - 3}-", size - 3, size),
        ("bytes=-4", size - 4, size),
        (f"bytes=5-{10**15}", 5, size),
    ]:
        answer = http.get(url, headers={"Range": asked, "If-Range": etag})
        assert answer.status_code == 206, asked
        assert answer.content == CONTENT[start:end]
        assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
        assert answer.headers["x-content-sha256"] == hashlib.sha256(CONTENT).hexdigest()
    for asked in ("bytes=9-3", "bytes=-", "bytes=a-b", "lines=1-2", "bytes=0-1,4-5", "bytes=1--2", ""):
        answer = http.get(url, headers={"Range": asked})
        assert (answer.status_code, len(answer.content)) == (200, size), asked
    assert http.get(url, headers={"Range": "bytes=0-9", "If-Range": '"another"'}).status_code == 200
    for asked in (f"bytes={size}-", f"bytes={10**17}-{10**17 + 1}", "bytes=-0"):
        answer = http.get(url, headers={"Range": asked})
        assert answer.status_code == 416, asked
        assert answer.headers["content-range"] == f"bytes */{size}"
        assert error_of(answer)["code"] == "range_not_satisfiable"
    for tags in (etag, f'"x", W/{etag}', "*"):
        answer = http.get(url, headers={"If-None-Match": tags})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == etag
    assert http.get(url, headers={"If-None-Match": '"x"'}).status_code == 200


def test_an_interrupted_download_of_an_adapter_can_go_on(http: TestClient, database: Database, storage: Storage):
    job = submit(http)
    train(database, storage, adapter=CONTENT)
    url = f"/v1/fine_tuning/jobs/{job['id']}/adapter"
    first = http.get(url, headers={"Range": "bytes=0-999999"})
    rest = http.get(url, headers={"Range": "bytes=1000000-", "If-Range": first.headers["etag"]})
    whole = first.content + rest.content
    assert hashlib.sha256(whole).hexdigest() == first.headers["x-content-sha256"]
    assert first.headers["content-type"] == "application/zip"
    assert first.headers["content-disposition"].startswith('attachment; filename="adapter.zip"')


def test_bytes_that_are_gone_are_told_and_not_sent_as_nothing(http: TestClient, url: str, storage: Storage):
    storage.delete(f"files/{url.split('/')[3]}")
    answer = http.get(url)
    assert answer.status_code == 404
    assert error_of(answer)["code"] == "content_missing"
