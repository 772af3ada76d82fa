import time

import pytest
from sqlalchemy import text
from starlette.testclient import TestClient
from ulid import ULID

from api.main import create_app
from api.orphans import OrphanSweep
from core.errors import TrainingError
from core.ids import new_id
from core.settings import Settings
from core.storage import Storage
from models import lifecycle
from models.database import Database
from models.lifecycle import Claim
from models.tables import Checkpoint
from tests.api.driving import claim, submit, train, upload
from tests.waiting import wait_for


@pytest.fixture
def sweep(database: Database, storage: Storage) -> OrphanSweep:
    """A sweep that is called by hand."""
    return OrphanSweep(database, storage)


def objects(storage: Storage) -> list[str]:
    """What lies below the folders of all jobs."""
    return sorted(key.split("/", 2)[2] for key in storage.list("jobs"))


def lose_attempt(database: Database, storage: Storage, name: str) -> Claim:
    """An attempt that stores a checkpoint, and an object that it does not come to name."""
    taken = claim(database)
    folder = f"jobs/{taken.job_id}/{taken.attempt}-{taken.epoch}"
    stored = storage.put(f"{folder}/checkpoint-1.zip", [b"zip"])
    storage.put(f"{folder}/{name}", [b"half"])
    row = Checkpoint(job_id=taken.job_id, step=1, storage_key=stored.key, bytes=3, sha256=stored.sha256, metrics={})
    with database.write() as session:
        lifecycle.record_checkpoint(session, taken, row)
        lifecycle.hand_back(session, taken, "a crash", count_attempt=True, max_attempts=3)
    return taken


def fail_after_storing(database: Database, storage: Storage) -> None:
    taken = claim(database)
    storage.put(f"jobs/{taken.job_id}/1-1/adapter.zip", [b"half"])
    with database.write() as session:
        lifecycle.fail(session, taken, TrainingError("No memory.", code="out_of_memory"))


def end_long_ago(database: Database) -> None:
    with database.write() as session:
        session.execute(text("UPDATE jobs SET finished_at = finished_at - 3700"))


def test_what_lost_attempts_left_goes_and_what_rows_name_stays(
    http: TestClient, database: Database, storage: Storage, sweep: OrphanSweep
):
    submit(http)
    lose_attempt(database, storage, "checkpoint-9.zip")
    lost = lose_attempt(database, storage, "adapter.zip")
    storage.put(f"jobs/{lost.job_id}-of-another/1-1/x", [b"x"])
    train(database, storage)  # its result files lie beside the first attempt's objects
    kept = ["1-1/adapter.zip", "1-1/checkpoint-2.zip", "1-1/step_metrics.csv", "1-1/x", "2-2/checkpoint-1.zip"]
    orphans = ["1-1/checkpoint-1.zip", "1-1/checkpoint-9.zip", "2-2/adapter.zip"]
    assert objects(storage) == sorted(kept + orphans)

    assert sweep.sweep() == 3600
    assert objects(storage) == sorted(kept + orphans), "the job has only just ended"
    end_long_ago(database)
    sweep.sweep()
    assert objects(storage) == kept
    result = http.get(f"/v1/fine_tuning/jobs/{lost.job_id}").json()["result_files"][0]
    assert http.get(f"/v1/files/{result}/content").status_code == 200


def test_a_job_that_runs_keeps_everything(database: Database, storage: Storage, http: TestClient, sweep: OrphanSweep):
    submit(http)
    lose_attempt(database, storage, "adapter.zip")
    sweep.sweep()
    assert objects(storage) == ["1-1/adapter.zip", "1-1/checkpoint-1.zip"]


def test_a_run_deleted_while_its_objects_are_looked_at_keeps_its_files(
    http: TestClient, database: Database, storage: Storage, sweep: OrphanSweep
):
    submit(http)
    lose_attempt(database, storage, "checkpoint-9.zip")
    train(database, storage)
    end_long_ago(database)
    with database.write() as session:  # what the deletion of a job does to its files
        session.execute(text("UPDATE files SET job_id = NULL"))
    sweep.sweep()
    kept = ["1-1/adapter.zip", "1-1/checkpoint-1.zip", "1-1/checkpoint-2.zip", "1-1/step_metrics.csv"]
    assert objects(storage) == kept


def test_a_sweep_goes_on_where_it_stopped_and_is_not_done_before_the_last(
    http: TestClient, database: Database, storage: Storage, sweep: OrphanSweep
):
    training_file = submit(http)["training_file"]
    for _ in range(20):
        submit(http, training_file=training_file)
    for _ in range(21):
        fail_after_storing(database, storage)
    with database.write() as session:
        session.execute(text("UPDATE jobs SET finished_at = 1"))  # all in one moment
    assert sweep.sweep() == 0
    assert objects(storage) == ["1-1/adapter.zip"]
    assert sweep.sweep() == 3600
    assert objects(storage) == []


def test_the_api_sweeps_when_it_starts(settings: Settings, key: str, database: Database, storage: Storage):
    headers = {"Authorization": f"Bearer {key}"}
    with TestClient(create_app(settings), headers=headers) as http:
        submit(http)
    fail_after_storing(database, storage)
    end_long_ago(database)
    with TestClient(create_app(settings), headers=headers):
        wait_for(lambda: objects(storage) == [])


def test_uploaded_bytes_without_a_row_go_after_a_day(http: TestClient, storage: Storage, sweep: OrphanSweep):
    kept = f"files/{upload(http)}"
    young = f"files/{new_id('file-')}"
    long_ago = str(ULID.from_timestamp(time.time() - 86_500)).lower()
    foreign = "files/README"
    for key in (young, foreign, f"files/file-{long_ago}", f"uploads/upload_x/part_{long_ago}"):
        storage.put(key, [b"x"])
    sweep.sweep()
    assert sorted([*storage.list("files"), *storage.list("uploads")]) == sorted([kept, young, foreign])


def test_an_old_file_that_has_its_row_stays(
    http: TestClient, storage: Storage, sweep: OrphanSweep, monkeypatch: pytest.MonkeyPatch
):
    file_id = upload(http)
    announced = {"filename": "f", "purpose": "fine-tune", "bytes": 1, "mime_type": "text/jsonl"}
    upload_id = http.post("/v1/uploads", json=announced).json()["id"]
    http.post(f"/v1/uploads/{upload_id}/parts", files={"data": ("part", b"x")})
    monkeypatch.setattr("api.orphans._UPLOAD_GRACE_SECONDS", -60)  # everything is old
    sweep.sweep()
    assert http.get(f"/v1/files/{file_id}/content").status_code == 200
    assert len(list(storage.list("uploads"))) == 1
