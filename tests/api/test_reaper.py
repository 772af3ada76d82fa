from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from starlette.testclient import TestClient

from api import file_access
from api.main import create_app
from api.reaper import Reaper
from core.settings import Settings
from core.storage import Storage
from models import lifecycle
from models.database import Database
from models.status import JobStatus
from models.tables import Job
from tests.api.driving import submit, upload
from tests.waiting import wait_for


def test_a_job_whose_worker_fell_silent_is_queued_again(settings: Settings, key: str, database: Database):
    quick = settings.model_copy(update={"reap_seconds": 0.05})
    with TestClient(create_app(quick), headers={"Authorization": f"Bearer {key}"}) as http:
        job = submit(http)
        with database.write() as session:
            taken = lifecycle.claim(session, "silent", lease_seconds=0.01)
        assert taken is not None
        url = f"/v1/fine_tuning/jobs/{job['id']}"
        wait_for(lambda: http.get(url).json()["status"] == "queued")
        newest = http.get(f"{url}/events").json()["data"][0]
        assert newest["level"] == "warn"
        assert "stopped answering" in newest["message"]
        with database.write() as session:  # and another worker can take it
            assert lifecycle.claim(session, "other", 60) is not None
            assert session.get_one(Job, job["id"]).status == JobStatus.RUNNING


def test_a_file_whose_time_is_up_goes_unless_a_job_needs_it(
    settings: Settings, key: str, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(file_access, "_SWEEP", 1)  # what has to stay must not take the sweep's only place
    quick = settings.model_copy(update={"reap_seconds": 0.05})
    with TestClient(create_app(quick), headers={"Authorization": f"Bearer {key}"}) as http:
        needed, idle = upload(http), upload(http)
        submit(http, training_file=needed)
        with database.write() as session:
            session.execute(text("UPDATE files SET expires_at = 1"))
        wait_for(lambda: http.get(f"/v1/files/{idle}").status_code == 404)
        wait_for(lambda: not (tmp_path / "storage" / "files" / idle).exists())
        assert http.get(f"/v1/files/{needed}").status_code == 200


def test_after_an_outage_of_the_database_workers_get_time_to_renew_their_leases(
    settings: Settings, key: str, database: Database, storage: Storage, monkeypatch: pytest.MonkeyPatch
):
    with TestClient(create_app(settings), headers={"Authorization": f"Bearer {key}"}) as http:
        job_id = submit(http)["id"]
    with database.write() as session:
        assert lifecycle.claim(session, "alive", lease_seconds=0) is not None
    reaper = Reaper(database, storage, settings.model_copy(update={"heartbeat_seconds": 0.2}))

    def status() -> JobStatus:
        with database.read() as session:
            return session.get_one(Job, job_id).status

    with monkeypatch.context() as patch:
        patch.setattr(lifecycle, "reap", away)
        with pytest.raises(OperationalError):
            reaper.reap()
    reaper.reap()
    assert status() == JobStatus.RUNNING
    wait_for(lambda: reaper.reap() and status() == JobStatus.QUEUED, 5)


def away(*_: object) -> list[str]:
    raise OperationalError("UPDATE jobs", {}, Exception("the server is gone"))
