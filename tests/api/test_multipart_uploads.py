"""Uploads in parts, by OpenAI's client and by hand."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from openai import OpenAI
from openai.types import Upload
from sqlalchemy import text
from starlette.testclient import TestClient

from core.storage import Storage
from models.database import Database
from tests.api.driving import CHAT, error_of
from tests.waiting import wait_for


def begin(http: TestClient, size: int, **fields) -> str:
    body = {"filename": "train.jsonl", "purpose": "fine-tune", "bytes": size, "mime_type": "text/jsonl", **fields}
    answer = http.post("/v1/uploads", json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def send(http: TestClient, upload_id: str, data: bytes):
    return http.post(f"/v1/uploads/{upload_id}/parts", files={"data": ("part", data)})


def part(http: TestClient, upload_id: str, data: bytes) -> str:
    answer = send(http, upload_id, data)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def objects(storage: Storage) -> list[str]:
    return [*storage.list("uploads"), *storage.list("files")]


def test_openais_client_uploads_in_parts(client: OpenAI, storage: Storage):
    content = CHAT * 40
    upload = client.uploads.upload_file_chunked(
        file=content,
        filename="train.jsonl",
        bytes=len(content),
        mime_type="text/jsonl",
        purpose="fine-tune",
        part_size=1000,
        md5=hashlib.md5(content).hexdigest(),
    )
    assert Upload.model_validate(upload.model_dump(warnings=False), strict=True).status == "completed"
    assert (upload.file.filename, upload.file.purpose, upload.file.bytes) == ("train.jsonl", "fine-tune", len(content))
    assert client.files.content(upload.file.id).read() == content
    assert client.files.retrieve(upload.file.id) == upload.file
    job = client.fine_tuning.jobs.create(model="tiny", training_file=upload.file.id)
    assert job.training_file == upload.file.id
    assert objects(storage) == [f"files/{upload.file.id}"]


def test_parts_are_joined_in_the_order_that_is_asked_for(http: TestClient, storage: Storage):
    upload_id = begin(http, len(CHAT), expires_after={"anchor": "created_at", "seconds": 3600})
    second, first = part(http, upload_id, CHAT[20:]), part(http, upload_id, CHAT[:20])
    part(http, upload_id, b"sent again, and not named")
    done = http.post(f"/v1/uploads/{upload_id}/complete", json={"part_ids": [first, second]}).json()
    assert http.get(f"/v1/files/{done['file']['id']}/content").content == CHAT
    assert done["file"]["expires_at"] == done["file"]["created_at"] + 3600
    assert objects(storage) == [f"files/{done['file']['id']}"]


def test_what_does_not_fit_is_refused_and_the_upload_goes_on(http: TestClient, storage: Storage):
    upload_id = begin(http, len(CHAT))
    good = part(http, upload_id, CHAT)
    for body, param, words in [
        ({"part_ids": []}, "part_ids", "at least 1"),
        ({"part_ids": ["part_none"]}, "part_ids[0]", "no part of this upload"),
        ({"part_ids": [good, good]}, "part_ids[1]", "named twice"),
        ({"part_ids": [good], "md5": "0" * 32}, "md5", hashlib.md5(CHAT).hexdigest()),
        ({"part_ids": [part(http, upload_id, b"x")]}, "part_ids", "announced with"),
        ({"part_ids": [part(http, upload_id, b"x" * len(CHAT))]}, "file", "train.jsonl, line 1"),
    ]:
        answer = http.post(f"/v1/uploads/{upload_id}/complete", json=body)
        assert answer.status_code == 400
        assert error_of(answer)["param"] == param
        assert words in error_of(answer)["message"]
    assert http.get("/v1/files").json()["data"] == []
    assert list(storage.list("files")) == []
    done = http.post(f"/v1/uploads/{upload_id}/complete", json={"part_ids": [good]})
    assert done.json()["status"] == "completed"


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"bytes": 0}, 400, "bytes"),
        ({"bytes": 200_001}, 413, "bytes"),
        ({"purpose": "fine-tune-results"}, 400, "purpose"),
        ({"expires_after": {"anchor": "created_at", "seconds": 1}}, 400, "expires_after.seconds"),
    ],
)
def test_an_upload_that_can_not_be_is_refused_at_once(shared, fields, status, param):
    body = {"filename": "f", "purpose": "fine-tune", "bytes": 1, "mime_type": "text/jsonl", **fields}
    answer = shared.http.post("/v1/uploads", json=body)
    assert (answer.status_code, error_of(answer)["param"]) == (status, param)


def test_a_bad_part_is_refused_and_nothing_stays(http: TestClient, storage: Storage):
    upload_id = begin(http, 10)
    url = f"/v1/uploads/{upload_id}/parts"
    for answer, status in [
        (http.post(url, data={"data": "no file"}), 400),
        (send(http, upload_id, b""), 400),
        (send(http, upload_id, b"x" * 200_001), 413),
        (send(http, upload_id, b"x" * 300_000), 413),
        (send(http, "upload_none", b"x"), 404),
    ]:
        assert answer.status_code == status
        error_of(answer)
    assert objects(storage) == []


def test_an_upload_that_has_ended_takes_nothing_more(http: TestClient, storage: Storage):
    upload_id = begin(http, len(CHAT))
    sent = part(http, upload_id, CHAT)
    assert http.post(f"/v1/uploads/{upload_id}/cancel").json()["status"] == "cancelled"
    assert objects(storage) == []
    for answer in (
        send(http, upload_id, CHAT),
        http.post(f"/v1/uploads/{upload_id}/complete", json={"part_ids": [sent]}),
        http.post(f"/v1/uploads/{upload_id}/cancel"),
    ):
        assert answer.status_code == 400  # a 409 would be tried again
        assert error_of(answer)["code"] == "upload_not_pending"
    assert objects(storage) == []


def test_completing_twice_at_once_makes_one_file(http: TestClient, storage: Storage):
    upload_id = begin(http, len(CHAT))
    body = {"part_ids": [part(http, upload_id, CHAT)]}
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: http.post(f"/v1/uploads/{upload_id}/complete", json=body), range(4)))
    assert sorted(answer.status_code for answer in answers) == [200, 400, 400, 400]
    [file] = http.get("/v1/files").json()["data"]
    assert objects(storage) == [f"files/{file['id']}"]


def test_an_upload_expires_after_an_hour_and_its_parts_go(settings, key: str, database: Database, storage: Storage):
    from api.main import create_app

    headers = {"Authorization": f"Bearer {key}"}
    quick = settings.model_copy(update={"reap_seconds": 0.05})
    with TestClient(create_app(quick), headers=headers) as http:
        upload_id = begin(http, len(CHAT))
        sent = part(http, upload_id, CHAT)
        with database.write() as session:
            session.execute(text("UPDATE uploads SET expires_at = expires_at - 3601"))
        late = http.post(f"/v1/uploads/{upload_id}/complete", json={"part_ids": [sent]})
        assert late.status_code == 400
        assert "expired" in error_of(late)["message"]
        wait_for(lambda: objects(storage) == [])
    with database.read() as session:
        assert session.scalar(text("SELECT status FROM uploads")) == "expired"
