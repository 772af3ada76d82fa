"""/v1/files/{id}/preflight over the API: started once, polled, kept, and of its project alone."""

import subprocess
from typing import Any

import pytest
from sqlalchemy import update
from starlette.testclient import TestClient

from core.settings import Settings
from models.base import db_now
from models.database import Database
from models.tables import Preflight
from tests.api.conftest import NO_BROKER
from tests.api.driving import CHAT, ITEMS, error_of, upload
from tests.e2e.service import as_lines, train_lines
from tests.waiting import wait_for


@pytest.fixture
def database_url(request) -> str:
    """SQLite, unless a test asks for both."""
    return request.getfixturevalue(getattr(request, "param", "sqlite_url"))


on_both = pytest.mark.parametrize("database_url", ["sqlite_url", "postgres_url"], indirect=True)


@pytest.fixture
def settings(tmp_path, database_url, catalogue) -> Settings:
    """A Hone whose base models are the tiny one, which is here, and one that is not."""
    with catalogue.open("a") as file:
        file.write('[absent]\nsource = "hub"\nrepo = "org/absent"\nrevision = "' + "0" * 40 + '"\n')
    return Settings(
        home=tmp_path / "home",
        database_url=database_url,
        storage_url=(tmp_path / "storage").as_uri(),
        redis_url=NO_BROKER,
        catalogue=catalogue,
    )


def finished(http: TestClient, file_id: str, **query: Any) -> dict[str, Any]:
    """The preflight once it has ended."""
    seen: list[dict[str, Any]] = []

    def ended() -> bool:
        answer = http.get(f"/v1/files/{file_id}/preflight", params=query)
        assert answer.status_code in (200, 202), answer.text
        seen.append(answer.json())
        assert (answer.status_code == 202) == (seen[-1]["status"] == "running")
        return answer.status_code == 200

    wait_for(ended, 180)
    return seen[-1]


def test_a_preflight_is_made_once_and_answers_any_cut(http: TestClient, monkeypatch):
    training, validation = upload(http, train_lines(60)), upload(http, train_lines(5))
    query = {"model": "tiny", "validation_file": validation}
    first = http.get(f"/v1/files/{training}/preflight", params=query)
    assert first.status_code == 202
    assert first.json()["status"] == "running"
    assert first.json()["progress"]["total_bytes"] == len(train_lines(60))
    made = finished(http, training, **query)
    assert (made["status"], made["template"], made["error"]) == ("completed", "chat", None)
    assert made["progress"]["bytes"] == made["progress"]["total_bytes"]
    report = made["report"]
    assert (report["samples"], report["format"], report["file_format"]) == (60, "instruction", "jsonl")
    assert report["problems"] == {"count": 0, "kinds": [], "first": []}
    assert report["overlap"]["count"] == 5
    assert report["lengths"]["unit"] == "tokens"
    assert sum(report["lengths"]["histogram"]["counts"]) == 60
    assert report["cut"]["max_seq_length"] == 128

    monkeypatch.setattr(subprocess, "Popen", None)  # from here on, nothing is started
    cut = finished(http, training, max_seq_length=64, **query)["report"]["cut"]
    assert (cut["max_seq_length"], cut["reason"]) == (64, "as asked")
    assert cut["samples"] == cut["end_token_lost"] == 42
    assert finished(http, training, **query)["report"] == report
    the_tokens_of_a_sample_say_which_are_trained(http)


def the_tokens_of_a_sample_say_which_are_trained(http: TestClient):
    """A part of the test above: it needs the card, which takes seconds to make."""
    file_id = upload(http, as_lines([{"prompt": "q", "completion": "a"}, {"prompt": "é 日", "completion": "yes"}]))
    url = f"/v1/files/{file_id}/preflight/samples"
    assert http.get(f"{url}/2", params={"model": "tiny"}).status_code == 404
    sample = http.get(f"{url}/1", params={"model": "tiny", "max_seq_length": 16}).json()
    texts = [token["text"] for token in sample["tokens"]]
    assert "".join(texts) == "<|im_start|>user\né 日<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>"
    assert "".join(token["text"] for token in sample["tokens"] if token["trained"]) == "yes<|im_end|>"
    assert sample["trained"] == sum(token["trained"] for token in sample["tokens"])
    assert (sample["length"], sample["cut_at"], sample["line"]) == (len(texts), 16, 2)
    plain = http.get(f"{url}/1", params={"model": "tiny", "template": "none"}).json()
    assert "".join(token["text"] for token in plain["tokens"]) == "é 日yes<|im_end|>"
    assert plain["max_seq_length"] is None


@on_both
def test_without_the_tokenizer_characters_are_counted_and_the_report_says_so(http: TestClient):
    file_id = upload(http)
    report = finished(http, file_id, model="absent")["report"]
    assert (report["lengths"]["unit"], report["lengths"]["longest"], report["cut"]) == ("characters", 7, None)
    assert "absent" in report["note"]
    assert "not fetched" in report["note"]
    assert finished(http, file_id)["report"]["note"] is None
    refused = http.get(f"/v1/files/{file_id}/preflight/samples/0", params={"model": "absent"})
    assert (refused.status_code, error_of(refused)["code"]) == (400, "tokenizer_unavailable")


@on_both
def test_a_pass_whose_process_is_gone_is_taken_up_again(http: TestClient, database: Database):
    file_id = upload(http)
    finished(http, file_id)
    with database.write() as session:
        session.execute(update(Preflight).values(status="running", found=None, updated_at=db_now() - 1000))
    assert finished(http, file_id)["status"] == "completed"
    with database.write() as session:
        session.execute(update(Preflight).values(status="running", found=None, updated_at=db_now() - 5))
    assert http.get(f"/v1/files/{file_id}/preflight").status_code == 202
    assert http.get(f"/v1/files/{file_id}/preflight").json()["progress"]["samples"] == 1, "nobody started another"


def test_a_child_that_dies_is_a_failed_preflight(http: TestClient, monkeypatch):
    monkeypatch.setattr("api.preflight_runs.sys.executable", "/bin/false")
    made = finished(http, upload(http))
    assert (made["status"], made["report"], made["error"]["code"]) == ("failed", None, "preflight_failed")


def test_what_can_not_be_looked_through_is_refused(http: TestClient, other_key: str):
    items, training = upload(http, ITEMS, "evals"), upload(http, CHAT)
    for url, param, code in [
        (f"/v1/files/{items}/preflight", "file_id", "wrong_purpose"),
        (f"/v1/files/{training}/preflight?validation_file={items}", "validation_file", "wrong_purpose"),
        (f"/v1/files/{training}/preflight?model=unknown", "model", "model_not_found"),
        (f"/v1/files/{training}/preflight?template=mine", "template", None),
        (f"/v1/files/{training}/preflight?max_seq_length=3", "max_seq_length", None),
        (f"/v1/files/{training}/preflight/samples/0", "model", None),
    ]:
        answer = http.get(url)
        assert answer.status_code == 400, url
        assert error_of(answer)["param"] == param
        if code:
            assert error_of(answer)["code"] == code
    theirs = {"Authorization": f"Bearer {other_key}"}
    for path in ("preflight", "preflight/samples/0?model=tiny"):
        assert http.get(f"/v1/files/{training}/{path}", headers=theirs).status_code == 404


def test_a_refused_upload_tells_every_problem(http: TestClient):
    lines = b'{"prompt": "a", "completion": "b"}\n{"prompt": "c"}\n' + b"nothing\n" * 30
    answer = http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("d.jsonl", lines)})
    assert answer.status_code == 400
    report = error_of(answer)["hone"]["report"]
    assert report["samples"] == 1
    assert report["problems"]["count"] == 31
    assert report["problems"]["kinds"] == [{"kind": "not_json", "count": 30}, {"kind": "missing_field", "count": 1}]
    assert len(report["problems"]["first"]) == 20
    assert report["problems"]["first"][0] == {
        "line": 2,
        "field": "completion",
        "reason": "is missing",
        "fix": "This file's format is 'completion': every line needs it.",
        "kind": "missing_field",
    }
