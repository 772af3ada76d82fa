"""SQLite under a worker that writes and clients that ask and submit: nobody meets a locked database."""

from concurrent.futures import ThreadPoolExecutor
from logging import INFO
from pathlib import Path

import httpx2
import pytest

from api.main import create_app
from core.storage import Storage
from models.database import Database
from models.tables import Job
from tests.api.conftest import served, small_settings
from tests.api.driving import CHAT
from tests.conftest import make_key
from tests.waiting import wait_for
from tests.worker.world import stand_in
from worker.slot import Slot

#: Requests of eight clients together; two cores answer some 200 a second.
REQUESTS = 400
#: More than the requests take; the worker is drained when they are through.
STEPS = 10_000


def test_requests_and_a_running_job_never_meet_a_locked_database(
    sqlite_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    settings = small_settings(tmp_path, sqlite_url).model_copy(update={"poll_seconds": 0.2, "heartbeat_seconds": 0.1})
    database = Database(sqlite_url)
    key = make_key(database)
    slot = Slot(database, Storage(settings.resolved_storage_url), settings, stand_in(f"steps={STEPS}", "pause=0.01"))
    with served(create_app(settings)) as base_url:
        with httpx2.Client(base_url=base_url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as http:
            job_id = drive(http, slot, database)
        slot.drain()
        assert slot.join(30)
    # The broker's absence is told of once, on purpose.
    assert not [record for record in caplog.records if record.levelno > INFO and "broker" not in str(record.msg)]
    assert any("request" in str(record.msg) for record in caplog.records), "the logs were looked at"
    with database.read() as session:
        job = session.get_one(Job, job_id)
        assert (job.status, job.lease_epoch) == ("queued", 1), "it ran all the while, and was handed back"
        assert 0 < job.step < STEPS
    database.dispose()


def drive(http: httpx2.Client, slot: Slot, database: Database) -> str:
    """Start a job, then ask and submit while it runs; its id."""
    file = http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("t.jsonl", CHAT)}).json()
    body = {"model": "tiny", "training_file": file["id"]}
    job_id = str(http.post("/v1/fine_tuning/jobs", json=body).json()["id"])
    slot.start()
    wait_for(lambda: step_of(database, job_id) > 0)

    def ask(number: int) -> int:
        if number % 4 == 0:
            return http.post("/v1/fine_tuning/jobs", json=body).status_code
        path = ("", "/events", "/metrics")[number % 3]
        return http.get(f"/v1/fine_tuning/jobs/{job_id}{path}").status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(ask, range(REQUESTS))) == {200}
    return job_id


def step_of(database: Database, job_id: str) -> int:
    with database.read() as session:
        return session.get_one(Job, job_id).step
