import hashlib
import time

import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from openai.types import FileDeleted, FileObject
from sqlalchemy import text
from starlette.testclient import TestClient

from core.storage import Storage
from models.database import Database
from tests.api.conftest import Shared
from tests.api.driving import CHAT, ITEMS, error_of, submit, train, upload

GOOD = '{"prompt": "a", "completion": "b"}'


def test_openais_client_uploads_lists_reads_and_deletes(client: OpenAI):
    made = client.files.create(file=("train.jsonl", CHAT), purpose="fine-tune")
    client.files.create(file=("items.jsonl", ITEMS), purpose="evals")
    raw = client.files.with_raw_response.retrieve(made.id).http_response.json()

    assert FileObject.model_validate(raw, strict=True) == made
    assert client.files.wait_for_processing(made.id, poll_interval=0.01) == made
    assert made.bytes == len(CHAT)
    assert abs(made.created_at - time.time()) < 60
    assert raw["hone"]["report"]["format"] == "chat"
    assert raw["hone"]["report"]["samples"] == 1
    assert client.files.content(made.id).read() == CHAT
    assert [file.id for file in client.files.list(purpose="fine-tune")] == [made.id]
    assert len(list(client.files.list(limit=1))) == 2  # walks both pages

    deleted = client.files.with_raw_response.delete(made.id).http_response.json()
    assert FileDeleted.model_validate(deleted, strict=True).deleted
    with pytest.raises(NotFoundError) as refusal:
        client.files.retrieve(made.id)
    assert refusal.value.code == "not_found"
    assert refusal.value.request_id.startswith("req_")


def test_openais_client_reads_the_line_and_the_field_from_a_refusal(client: OpenAI):
    with pytest.raises(BadRequestError) as refusal:
        client.files.create(
            file=("bad.jsonl", b'{"prompt": "a", "completion": "b"}\n{"prompt": "c"}\n'), purpose="fine-tune"
        )
    assert "bad.jsonl, line 2, field 'completion': is missing" in refusal.value.message
    assert refusal.value.param == "file"
    assert refusal.value.code == "invalid_file_format"


@pytest.mark.parametrize(
    ("purpose", "content", "words"),
    [
        ("fine-tune", b"", "has no samples"),
        ("fine-tune", b"\n \n", "has no samples"),
        ("fine-tune", b'{"prompt": "\xff", "completion": "b"}', "line 1: is not UTF-8"),
        ("fine-tune", f'{GOOD}\n{{"prompt": '.encode(), "line 2: is not JSON"),
        ("fine-tune", b'{"prompt": "a"}', "line 1, field 'completion': is missing"),
        ("fine-tune", b'{"messages": [{"role": "user", "content": "a"}]}', "no completion"),
        ("fine-tune", b'{"prompt": "a", "completion": ""}', "line 1, field 'completion': is empty"),
        (
            "fine-tune",
            f'{GOOD}\n{{"prompt": "{"x" * 6000}", "completion": "b"}}'.encode(),
            "line 2: is longer than 5,000",
        ),
        ("fine-tune", b'{"prompt": "a\\u0000", "completion": "b"}', "NUL"),
        ("fine-tune", b'{"prompt": "a\\ud800", "completion": "b"}', "surrogate"),
        ("fine-tune", b'{"prompt": NaN, "completion": "b"}', "NaN"),
        ("fine-tune", b"[" * 4000, "line 1"),
        ("fine-tune", b"\x89PNG\r\n\x1a\n\0\0", "line 1"),
        ("evals", b'{"prompt": "a"}', "line 1, field 'item'"),
        ("evals", b"", "has no samples"),
    ],
)
def test_an_unusable_dataset_is_refused_and_nothing_stays(shared: Shared, purpose: str, content: bytes, words: str):
    answer = shared.http.post("/v1/files", data={"purpose": purpose}, files={"file": ("d.jsonl", content)})
    assert answer.status_code == 400
    told = error_of(answer)
    assert words in told["message"]
    assert told["message"].startswith("d.jsonl")
    assert told["param"] == "file"
    assert shared.made() == {"files": 0, "jobs": 0, "objects": 0}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "purpose"),
        ({"purpose": "fine-tune-results"}, "purpose"),
        ({"purpose": "evals", "colour": "red"}, "colour"),
        (
            {"purpose": "evals", "expires_after[anchor]": "now", "expires_after[seconds]": "3600"},
            "expires_after.anchor",
        ),
        (
            {"purpose": "evals", "expires_after[anchor]": "created_at", "expires_after[seconds]": "10"},
            "expires_after.seconds",
        ),
        ({"purpose": "evals", "expires_after[anchor]": "created_at"}, "expires_after.seconds"),
    ],
)
def test_a_bad_form_field_is_named(shared: Shared, fields: dict[str, str], param: str):
    answer = shared.http.post("/v1/files", data=fields, files={"file": ("d.jsonl", ITEMS)})
    assert answer.status_code == 400
    assert error_of(answer)["param"] == param
    assert shared.made()["objects"] == 0


def test_a_form_without_a_file_or_with_two_or_none_at_all_is_a_400(shared: Shared):
    two = [("file", ("a", ITEMS)), ("file", ("b", ITEMS))]
    for answer in (
        shared.http.post("/v1/files", data={"purpose": "evals"}),
        shared.http.post("/v1/files", data={"purpose": "evals"}, files=two),
        shared.http.post(
            "/v1/files", content=b"--b broken", headers={"content-type": "multipart/form-data; boundary=b"}
        ),
        shared.http.post("/v1/files", content=b"x", headers={"content-type": "multipart/form-data"}),
    ):
        assert answer.status_code == 400
        error_of(answer)
    assert shared.made() == {"files": 0, "jobs": 0, "objects": 0}


def test_a_file_over_the_limit_is_a_413_and_nothing_stays(shared: Shared):
    for size in (200_001, 300_000):  # behind the form's overhead, and before it
        answer = shared.http.post("/v1/files", data={"purpose": "user_data"}, files={"file": ("d", b"x" * size)})
        assert answer.status_code == 413
        assert "200,000" in error_of(answer)["message"] or "265,536" in error_of(answer)["message"]
    assert shared.made() == {"files": 0, "jobs": 0, "objects": 0}


def test_pages_go_both_ways_and_a_cursor_must_look_like_an_id_of_the_list(http: TestClient):
    ids = [upload(http, name=f"{n}.jsonl") for n in range(5)]
    first = http.get("/v1/files?limit=2").json()
    assert [file["id"] for file in first["data"]] == ids[:2:-1]
    assert (first["first_id"], first["last_id"], first["has_more"]) == (ids[4], ids[3], True)
    last = http.get(f"/v1/files?limit=3&after={ids[3]}").json()
    assert [file["id"] for file in last["data"]] == ids[2::-1]
    assert last["has_more"] is False
    assert [file["id"] for file in http.get("/v1/files?order=asc").json()["data"]] == ids
    job_id = submit(http, training_file=ids[0])["id"]
    for cursor in ("file-none", ids[0].upper(), ids[0][:-1], job_id):
        answer = http.get("/v1/files", params={"after": cursor})
        assert answer.status_code == 400
        told = error_of(answer)
        assert (told["param"], told["code"]) == ("after", "invalid_cursor")
        assert "not in this list" in told["message"]


def test_a_cursor_whose_row_was_deleted_still_leads_on(http: TestClient):
    ids = [upload(http) for _ in range(4)]
    for order, first, then in (("desc", ids[3], ids[2]), ("asc", ids[0], ids[1])):
        http.delete(f"/v1/files/{first}")
        page = http.get("/v1/files", params={"after": first, "order": order, "limit": 1}).json()
        assert [file["id"] for file in page["data"]] == [then]


def test_pages_are_stable_while_files_come(http: TestClient):
    ids = [upload(http) for _ in range(4)]
    seen: list[str] = []
    page = http.get("/v1/files", params={"limit": 2}).json()
    while page["data"]:
        seen += [file["id"] for file in page["data"]]
        upload(http)
        page = http.get("/v1/files", params={"limit": 2, "after": page["last_id"]}).json()
    assert seen == ids[::-1]


def test_a_file_in_use_stays_until_its_job_has_ended(http: TestClient, tmp_path):
    file_id, other = upload(http), upload(http)
    job = submit(http, training_file=file_id, validation_file=other)
    for needed in (file_id, other):
        refused = http.delete(f"/v1/files/{needed}")
        assert refused.status_code == 400
        assert job["id"] in error_of(refused)["message"]
    assert http.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel").status_code == 200
    assert http.delete(f"/v1/files/{file_id}").json() == {"id": file_id, "object": "file", "deleted": True}
    assert not (tmp_path / "storage" / "files" / file_id).exists()
    assert http.get(f"/v1/files/{file_id}").status_code == 404


def test_an_adapter_stays_while_its_model_does(http: TestClient, database: Database, storage: Storage):
    submit(http)
    train(database, storage)
    job = http.get("/v1/fine_tuning/jobs").json()["data"][0]
    adapter = job["result_files"][1]
    refused = http.delete(f"/v1/files/{adapter}")
    assert refused.status_code == 400
    assert job["fine_tuned_model"] in error_of(refused)["message"]
    assert http.delete(f"/v1/models/{job['fine_tuned_model']}").status_code == 200
    assert http.delete(f"/v1/files/{adapter}").status_code == 200


def test_a_failed_commit_leaves_no_object(http: TestClient, database: Database, tmp_path):
    with database.write() as session:  # no row can be written
        session.execute(text("ALTER TABLE files RENAME COLUMN purpose TO other"))
    answer = http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("a", CHAT)})
    assert answer.status_code >= 500
    assert [path for path in (tmp_path / "storage").rglob("*") if path.is_file()] == []


def test_the_shown_sha256_is_that_of_the_content(http: TestClient):
    made = http.get(f"/v1/files/{upload(http)}").json()
    assert made["hone"]["sha256"] == hashlib.sha256(CHAT).hexdigest()
