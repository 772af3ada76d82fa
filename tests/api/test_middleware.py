import contextlib
import json
import stat
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from api.main import create_app
from api.middleware import MULTIPART_OVERHEAD
from core.settings import Settings
from tests.api.conftest import served
from tests.api.driving import error_of


def test_every_answer_has_a_request_id_of_its_own(http: TestClient):
    ids = {http.get(path).headers["x-request-id"] for path in ("/healthz", "/v1/files", "/nothing", "/v1/files/x")}
    assert len(ids) == 4


@pytest.mark.parametrize("chunked", [False, True], ids=["content-length", "chunked"])
def test_an_overlong_json_body_is_a_413(base_url: str, key: str, chunked: bool):
    body = json.dumps({"model": "x" * 30_000}).encode()

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(body), 1000):
            yield body[start : start + 1000]

    headers = {"Authorization": f"Bearer {key}", "content-type": "application/json"}
    answer = httpx2.post(f"{base_url}/v1/fine_tuning/jobs", content=pieces() if chunked else body, headers=headers)

    assert answer.status_code == 413
    told = error_of(answer)
    assert told["code"] == "body_too_large"
    assert "20,000 bytes" in told["message"]


def test_an_upload_without_end_never_fills_the_disk(settings: Settings, key: str):
    limit, sent, largest = 3_000_000, 0, 0

    def endless() -> Iterator[bytes]:
        nonlocal sent, largest
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        while sent < 8 * limit:
            sent += 50_000
            largest = max(largest, _largest_unnamed_file())
            yield b"x" * 50_000

    headers = {"Authorization": f"Bearer {key}", "content-type": "multipart/form-data; boundary=b"}
    with served(create_app(settings.model_copy(update={"max_file_bytes": limit}))) as url:
        answer = httpx2.post(f"{url}/v1/files", content=endless(), headers=headers)
    assert answer.status_code == 413
    assert error_of(answer)["code"] == "body_too_large"
    assert limit / 3 < largest <= limit + MULTIPART_OVERHEAD


def _largest_unnamed_file() -> int:
    """Size of this process's largest open file without a name: where a form is spooled."""
    sizes = [0]
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found = fd.stat()
            if stat.S_ISREG(found.st_mode) and found.st_nlink == 0:
                sizes.append(found.st_size)
    return max(sizes)


def test_a_fault_of_ours_leaks_nothing_and_the_log_has_it(
    settings: Settings, key: str, caplog: pytest.LogCaptureFixture
):
    app: FastAPI = create_app(settings)

    @app.get("/broken")
    def broken() -> None:
        raise RuntimeError("the secret detail")

    with TestClient(app) as http:  # raises what leaves the application: nothing may
        answer = http.get("/broken")
    assert answer.status_code == 500
    told = error_of(answer)
    assert told["type"] == "server_error"
    assert answer.headers["x-request-id"] in told["message"]
    assert "secret" not in answer.text
    assert "the secret detail" in caplog.text


def test_a_stream_that_breaks_is_seen_by_the_client(settings: Settings, key: str):
    from fastapi.responses import StreamingResponse

    app = create_app(settings)

    def half() -> Iterator[bytes]:
        yield b"half"
        raise RuntimeError("storage broke")

    @app.get("/half")
    def stream() -> StreamingResponse:
        return StreamingResponse(half(), headers={"Content-Length": "8"})

    with served(app) as url, pytest.raises(httpx2.RemoteProtocolError):
        httpx2.get(f"{url}/half")
