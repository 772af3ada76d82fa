"""/v1/files/imports: asked for over the API, carried out by its child against a hub on this machine."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import func, select, update
from starlette.testclient import TestClient

from api import import_runs
from api.main import create_app
from core.errors import PermissionDeniedError
from core.hub_order import require_allowed
from core.settings import Settings
from core.storage import Storage
from models.base import db_now
from models.database import Database
from models.tables import File, FileImport, Project
from tests.api.conftest import small_settings
from tests.api.driving import error_of
from tests.core.test_hub_child import ROWS, is_over, jsonl, parquet
from tests.hub_server import FakeHub, fake_hub
from tests.waiting import wait_for

DATASET = "org/data"


@pytest.fixture
def database_url(request) -> str:
    """SQLite, unless a test asks for both."""
    return request.getfixturevalue(getattr(request, "param", "sqlite_url"))


on_both = pytest.mark.parametrize("database_url", ["sqlite_url", "postgres_url"], indirect=True)


@pytest.fixture
def hub(monkeypatch) -> Iterator[FakeHub]:
    """A hub that this process's children ask."""
    with fake_hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        yield running


@pytest.fixture
def settings(tmp_path, database_url, hub) -> Settings:
    """A Hone whose operator allows one dataset and one owner."""
    return small_settings(tmp_path, database_url).model_copy(update={"hub_datasets": f"{DATASET}, acme/*"})


def ask(http: TestClient, **fields: Any) -> dict[str, Any]:
    answer = http.post("/v1/files/imports", json={"dataset": DATASET, **fields})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def ended(http: TestClient, import_id: str) -> dict[str, Any]:
    """The import once it has ended."""
    seen: dict[str, Any] = {}

    def look() -> bool:
        seen.update(http.get(f"/v1/files/imports/{import_id}").json())
        return seen["status"] not in ("queued", "running")

    wait_for(look, 60)
    return seen


def files(database: Database) -> int:
    with database.read() as session:
        return session.scalar(select(func.count()).select_from(File)) or 0


def objects(storage: Storage) -> list[str]:
    return list(storage.list("files"))


@on_both
def test_a_dataset_becomes_a_file_like_any_other(http: TestClient, hub: FakeHub, settings: Settings):
    commit = hub.add(DATASET, {"train-0.parquet": parquet(ROWS[:2]), "train-1.parquet": parquet(ROWS[2:])})
    begun = ask(http)
    assert (begun["object"], begun["status"], begun["file_id"]) == ("file.import", "queued", None)
    made = ended(http, begun["id"])
    assert (made["status"], made["error"]) == ("completed", None), made
    size = sum(len(content) for content in hub.repos[DATASET].commits[commit].values())
    assert made["progress"] == {"bytes": size, "total_bytes": size, "rows": 5}
    file = http.get(f"/v1/files/{made['file_id']}").json()
    assert (file["filename"], file["purpose"], file["status"]) == ("data-train.jsonl", "fine-tune", "processed")
    assert file["hone"]["source"] == {
        "type": "huggingface", "dataset": DATASET, "config": "default", "split": "train", "revision": None,
        "commit": commit, "files": 2, "columns": None, "skipped_rows": 0,
    }  # fmt: skip
    content = http.get(f"/v1/files/{file['id']}/content").content
    assert [json.loads(line) for line in content.splitlines()] == ROWS
    again = http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("data-train.jsonl", content)}).json()
    assert again["hone"].pop("source") is None
    file["hone"].pop("source")
    assert {**again, "id": 0, "created_at": 0} == {**file, "id": 0, "created_at": 0}

    wait_for(lambda: http.get(f"/v1/files/{file['id']}/preflight").status_code == 200, 60)
    assert http.get(f"/v1/files/{file['id']}/preflight").json()["report"]["samples"] == 5
    job = http.post("/v1/fine_tuning/jobs", json={"model": "tiny", "training_file": file["id"]})
    assert job.status_code == 200, job.text
    listed = http.get("/v1/files/imports").json()["data"]
    assert [one["id"] for one in listed] == [made["id"]]


def test_what_the_operator_does_not_allow_is_refused_before_anything_is_asked(http: TestClient, hub: FakeHub):
    for dataset in ("org/other", "data", "orga/data", "acme2/x", "Org/data"):
        answer = http.post("/v1/files/imports", json={"dataset": dataset})
        assert (answer.status_code, error_of(answer)["code"]) == (403, "dataset_not_allowed")
        assert "org/data, acme/*" in error_of(answer)["message"]
    for field, value in [
        ("dataset", "http://127.0.0.1/x"), ("dataset", "../etc"), ("dataset", "org/data/../../x"),
        ("dataset", "org/.."), ("dataset", "org/data?x=1"), ("split", "train[:10]"), ("split", "../x"),
        ("revision", "../main"), ("revision", "a/../b"), ("config", "a/b"), ("purpose", "batch"),
        ("columns", {"prompts": "q"}), ("other", 1),
    ]:  # fmt: skip
        answer = http.post("/v1/files/imports", json={"dataset": DATASET, field: value})
        assert answer.status_code == 400, (field, value, answer.text)
        assert (error_of(answer)["param"] or "").startswith(field) or field == "columns"
    assert hub.asked == []
    assert http.get("/v1/files/imports").json()["data"] == []


@pytest.mark.parametrize(
    ("allowed", "dataset", "is_allowed"),
    [
        (None, "a/b", False), ("", "a/b", False), (" , ", "a/b", False), ("*", "a/b", True), ("*", "squad", True),
        ("a/*", "a/b", True), ("a/*", "a", False), ("a/*", "ab/c", False), ("a/b", "a/b", True), ("a/b", "a/bc", False),
        ("x,a/b", "a/b", True),
    ],
)  # fmt: skip
def test_the_setting_names_datasets_owners_or_all(allowed, dataset, is_allowed):
    settings = Settings(hub_datasets=allowed)
    if is_allowed:
        require_allowed(settings, dataset)
        return
    with pytest.raises(
        PermissionDeniedError, match="HONE_HUB_DATASETS" if not settings.allowed_hub_datasets else "allows"
    ):
        require_allowed(settings, dataset)


def test_by_default_nothing_is_imported(tmp_path, sqlite_url, key):
    app = create_app(small_settings(tmp_path, sqlite_url))
    with TestClient(app, headers={"Authorization": f"Bearer {key}"}) as http:
        answer = http.post("/v1/files/imports", json={"dataset": DATASET})
    assert (answer.status_code, error_of(answer)["code"]) == (403, "dataset_not_allowed")
    assert "HONE_HUB_DATASETS" in error_of(answer)["message"]


def test_a_failure_is_told_and_leaves_nothing(http: TestClient, hub: FakeHub, database: Database, storage: Storage):
    hub.add(DATASET, {"train.jsonl": jsonl([*ROWS, {**ROWS[0], "output": ""}]), "test.jsonl": b'{"q": 1}\n'})
    for asked, code in [
        ({"split": "validation"}, "split_not_found"),
        ({"split": "test"}, "no_known_columns"),
        ({"config": "fr"}, "config_not_found"),
        ({"revision": "v9"}, "revision_not_found"),
        ({"dataset": "acme/none"}, "dataset_not_found"),
        ({}, "invalid_file_format"),
    ]:
        failed = ended(http, ask(http, **asked)["id"])
        assert (failed["status"], failed["error"]["code"], failed["file_id"]) == ("failed", code, None), failed
    assert failed["error"]["hone"]["report"]["problems"]["first"][0]["line"] == 6
    made = ended(http, ask(http, skip_bad_rows=True)["id"])
    assert made["status"] == "completed"
    assert files(database) == len(objects(storage)) == 1


def test_without_a_network_the_reason_is_told(http: TestClient, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    failed = ended(http, ask(http)["id"])
    assert failed["error"]["code"] == "hub_unreachable"
    assert "upload the dataset's files" in failed["error"]["message"]


def test_a_split_over_the_limit_of_uploads_is_refused(http: TestClient, hub: FakeHub, settings: Settings):
    hub.add(DATASET, {"train.jsonl": jsonl(ROWS * 3000)})
    failed = ended(http, ask(http)["id"])
    assert failed["error"]["code"] == "file_too_large"
    assert f"{settings.max_file_bytes:,}" in failed["error"]["message"]
    assert not any("/resolve/" in path for path, _ in hub.asked), "it is not even fetched"


def child_of_this_process() -> int:
    [child] = [one for one in psutil.Process().children() if "core.hub_child" in one.cmdline()]
    return int(child.pid)


def half_way(http: TestClient, hub: FakeHub) -> str:
    """An import whose only file is half fetched."""
    hub.add(DATASET, {"train.jsonl": jsonl(ROWS * 100)})
    hub.slow.add("train.jsonl")
    import_id = str(ask(http)["id"])
    assert hub.half_sent.wait(60)
    wait_for(lambda: http.get(f"/v1/files/imports/{import_id}").json()["progress"]["total_bytes"], 20)
    return import_id


def test_a_child_that_is_killed_half_way_leaves_nothing(
    http: TestClient, hub: FakeHub, database: Database, storage: Storage
):
    import_id = half_way(http, hub)
    os.kill(child_of_this_process(), signal.SIGKILL)
    failed = ended(http, import_id)
    assert (failed["status"], failed["error"]["code"]) == ("failed", "import_failed")
    assert (files(database), objects(storage)) == (0, [])


def test_a_cancelled_import_stops_its_child(http: TestClient, hub: FakeHub, database: Database, storage: Storage):
    import_id = half_way(http, hub)
    child = Path(f"/proc/{child_of_this_process()}/stat")
    assert http.post(f"/v1/files/imports/{import_id}/cancel").json()["status"] == "cancelled"
    wait_for(lambda: is_over(child), 30)
    hub.go_on.set()
    hub.slow.clear()
    assert ended(http, ask(http)["id"])["status"] == "completed", "and the next one is carried out"
    assert http.get(f"/v1/files/imports/{import_id}").json()["status"] == "cancelled"
    assert files(database) == len(objects(storage)) == 1
    again = http.post(f"/v1/files/imports/{import_id}/cancel")
    assert again.status_code == 200


@on_both
def test_an_import_whose_server_is_gone_is_taken_up_by_the_next(
    settings: Settings, key: str, hub: FakeHub, database: Database, storage: Storage, monkeypatch
):
    """Stopped in order it is queued again at once; killed, once it has told nothing for a while."""
    headers = {"Authorization": f"Bearer {key}"}
    with TestClient(create_app(settings), headers=headers) as http:
        import_id = half_way(http, hub)
    with database.read() as session:
        row = session.get_one(FileImport, import_id)
        assert (row.status, row.attempts, files(database)) == ("queued", 0, 0)
    with database.write() as session:  # as a process that was killed leaves it
        values = {"status": "running", "run": "of the dead", "attempts": 1, "updated_at": db_now() - 1000}
        session.execute(update(FileImport).values(values))
    hub.go_on.set()
    with TestClient(create_app(settings), headers=headers) as http:
        assert ended(http, import_id)["status"] == "completed"
    with database.read() as session:
        assert session.get_one(FileImport, import_id).attempts == 2
    assert files(database) == len(objects(storage)) == 1


@on_both
def test_one_that_takes_its_server_down_each_time_is_given_up(settings: Settings, database: Database, key: str):
    with database.write() as session:
        owner = session.scalars(select(Project.id)).one()
        session.add(FileImport(project_id=owner, asked={}, status="running", attempts=3, updated_at=db_now() - 1000))
    with database.write() as session:
        assert import_runs._claim(session) is None
    with database.read() as session:
        row = session.scalars(select(FileImport)).one()
        assert (row.status, row.error and row.error["code"]) == ("failed", "import_failed")


@on_both
def test_two_servers_never_take_the_same_import(settings: Settings, database: Database, key: str):
    with database.write() as session:
        owner = session.scalars(select(Project.id)).one()
        session.add(FileImport(project_id=owner, asked={}))
    with database.write() as session:
        first = import_runs._claim(session)
    with database.write() as session:
        assert import_runs._claim(session) is None
    assert first is not None
    with database.write() as session:  # taken by another since
        session.execute(update(FileImport).values(run="another's"))
    attempt = import_runs._Attempt(database, first)
    with pytest.raises(import_runs._UnwantedError):
        attempt.write(rows=1)
    with pytest.raises(import_runs._UnwantedError), database.write() as session:
        attempt.complete(session, File(id="file-1"))


def test_other_projects_imports_do_not_exist(http: TestClient, hub: FakeHub, other_key: str):
    hub.add(DATASET, {"train.jsonl": jsonl(ROWS)})
    import_id = ask(http)["id"]
    theirs = {"Authorization": f"Bearer {other_key}"}
    assert http.get(f"/v1/files/imports/{import_id}", headers=theirs).status_code == 404
    assert http.post(f"/v1/files/imports/{import_id}/cancel", headers=theirs).status_code == 404
    assert http.get("/v1/files/imports", headers=theirs).json()["data"] == []
    done = ended(http, import_id)
    refused = http.post(f"/v1/files/imports/{import_id}/cancel")
    assert (refused.status_code, error_of(refused)["code"]) == (400, "import_ended")
    assert http.delete(f"/v1/files/{done['file_id']}").status_code == 200
    assert http.get(f"/v1/files/imports/{import_id}").json()["file_id"] is None


def test_sent_again_under_one_key_it_is_done_once(http: TestClient, hub: FakeHub):
    hub.add(DATASET, {"train.jsonl": jsonl(ROWS)})
    answers = [
        http.post("/v1/files/imports", json={"dataset": DATASET}, headers={"Idempotency-Key": "one"}) for _ in range(2)
    ]
    assert answers[0].json() == answers[1].json()
    assert answers[1].headers["idempotent-replayed"] == "true"
    assert len(http.get("/v1/files/imports").json()["data"]) == 1


def test_a_project_can_not_fill_the_queue(http: TestClient, hub: FakeHub):
    half_way(http, hub)
    for _ in range(19):
        ask(http)
    answer = http.post("/v1/files/imports", json={"dataset": DATASET})
    assert (answer.status_code, error_of(answer)["code"]) == (400, "too_many_imports")
