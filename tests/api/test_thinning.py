"""Long curves in few points: whatever is left out, the extremes stay."""

import math
import random
import time

import pytest
from sqlalchemy import insert
from starlette.testclient import TestClient

from api.thinning import extremes
from models.database import Database
from models.tables import StepMetric
from tests.api.driving import submit

STEPS = 30_000


def test_each_run_keeps_its_lowest_and_its_highest():
    values = [5.0, None, 1.0, 9.0, None, None, 2.0, 2.0, 7.0]
    assert set(extremes(values, 3)) == {0, 2, 3, 6, 8}
    assert set(extremes([None, None], 1)) == set()
    assert set(extremes([3.0], 10)) == {0}


@pytest.fixture
def job_id(http: TestClient, database: Database) -> str:
    """A job of 30,000 steps whose loss has one spike, one hole, and a validation every 100 steps."""
    made = str(submit(http)["id"])
    random_ = random.Random(1)
    rows = [
        {
            "job_id": made,
            "step": step,
            "attempt": 1,
            "created_at": time.time(),
            "train_loss": 2 + math.exp(-step / 3000) + 0.1 * random_.random(),
            "valid_loss": 2 + math.exp(-step / 3000) if step % 100 == 0 else None,
            "learning_rate": 1e-4,
            "tokens_per_second": 1000 + random_.random(),
        }
        for step in range(1, STEPS + 1)
    ]
    rows[12_344] |= {"train_loss": 40.0}
    rows[20_001] |= {"train_loss": 0.01}
    rows[7_777] |= {"tokens_per_second": 1.0}
    rows[199] |= {"valid_loss": 30.0}
    with database.write() as session:
        session.execute(insert(StepMetric), rows)
    return made


@pytest.mark.parametrize("points", [100, 2000])
def test_no_curve_loses_an_extreme(http: TestClient, job_id: str, points: int):
    answer = http.get(f"/v1/fine_tuning/jobs/{job_id}/metrics", params={"points": points})
    steps = answer.json()["data"]
    by_step = {row["step"]: row for row in steps}
    assert points // 4 < len(steps) <= points
    assert list(by_step) == sorted(by_step)
    assert {1, STEPS} <= set(by_step)
    assert by_step[12_345]["train_loss"] == 40.0
    assert by_step[20_002]["train_loss"] == 0.01
    assert by_step[7_778]["tokens_per_second"] == 1.0
    assert by_step[200]["valid_loss"] == 30.0
    assert by_step[200]["train_loss"] is not None, "a step comes with all its figures"


def test_a_short_job_comes_whole(http: TestClient, database: Database):
    job_id = submit(http)["id"]
    with database.write() as session:
        session.add_all(StepMetric(job_id=job_id, step=step, attempt=1, train_loss=1.0) for step in range(100))
    answer = http.get(f"/v1/fine_tuning/jobs/{job_id}/metrics", params={"points": 100})
    assert [row["step"] for row in answer.json()["data"]] == list(range(100))


@pytest.mark.parametrize("points", ["99", "10001", "many"])
def test_points_have_bounds(http: TestClient, points: str):
    job_id = submit(http)["id"]
    answer = http.get(f"/v1/fine_tuning/jobs/{job_id}/metrics", params={"points": points})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "points")
