"""PostgreSQL is gone for longer than a lease lasts: the API says so, the worker trains on, nothing is done twice."""

import time
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import select

from models.database import Database
from models.tables import Job, JobEvent, StepMetric
from tests.chaos.clients import TRAINING
from tests.chaos.processes import LEASE_SECONDS, STEPS, Cluster
from tests.chaos.run import prepare
from tests.waiting import wait_for
from tests.worker.stand_in import loss

pytestmark = pytest.mark.timeout(120)


def test_a_database_that_is_away_for_longer_than_a_lease_costs_a_running_job_nothing(tmp_path: Path):
    pause = 2 * LEASE_SECONDS / STEPS  # the run outlasts the outage
    with Cluster(tmp_path, modes=(f"steps={STEPS}", "save=2", f"pause={pause}")) as cluster:
        cluster.start("postgres")
        database = Database(cluster.database_url)
        key = prepare(database)
        cluster.start("valkey", "api", "worker-1")
        headers = {"Authorization": f"Bearer {key}"}
        with httpx2.Client(base_url=cluster.base_url, headers=headers, timeout=20) as http:
            wait_for(lambda: is_served(http), 30)
            file = http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("t.jsonl", TRAINING)}).json()
            body = {"model": "base", "training_file": file["id"]}
            job_id = http.post("/v1/fine_tuning/jobs", json=body).json()["id"]
            wait_for(lambda: has_begun(database, job_id), 30)

            cluster.members["postgres"].kill()
            gone_at = time.monotonic()
            # The key may be remembered still; what is made is not.
            refused = http.post("/v1/fine_tuning/jobs", json=body)
            assert refused.status_code == 503
            assert refused.headers["retry-after"] == "5"
            assert refused.json()["error"]["code"] == "database_unavailable"
            assert http.get("/healthz").status_code == 200
            wait_for(lambda: time.monotonic() - gone_at > 1.5 * LEASE_SECONDS, 30)
            cluster.start("postgres")

            wait_for(lambda: ended(http, job_id), 60)
        with database.read() as session:
            job = session.get_one(Job, job_id)
            assert (job.status, job.attempt, job.lease_epoch) == ("succeeded", 1, 1)
            steps = session.scalars(select(StepMetric).filter_by(job_id=job_id).order_by(StepMetric.step)).all()
            assert [(row.step, row.train_loss, row.attempt) for row in steps] == [
                (step, loss(step), 1) for step in range(1, STEPS + 1)
            ]
            told = session.scalars(select(JobEvent.message).filter_by(job_id=job_id)).all()
            assert not [message for message in told if "again" in message]
        database.dispose()


def is_served(http: httpx2.Client) -> bool:
    try:
        return http.get("/readyz").status_code == 200
    except httpx2.HTTPError:
        return False


def has_begun(database: Database, job_id: str) -> bool:
    with database.read() as session:
        return session.scalar(select(StepMetric.step).filter_by(job_id=job_id)) is not None


def ended(http: httpx2.Client, job_id: str) -> bool:
    answer = http.get(f"/v1/fine_tuning/jobs/{job_id}")
    return answer.status_code == 200 and answer.json()["status"] in ("succeeded", "failed")
