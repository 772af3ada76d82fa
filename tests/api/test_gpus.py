"""A job that asks for several GPUs of one machine."""

from starlette.testclient import TestClient

from models.database import Database
from models.tables import Job, Worker
from tests.api.driving import CHAT, error_of, upload


def add_worker(database: Database, gpus: int) -> None:
    with database.write() as session:
        session.add(
            Worker(owner=f"w{gpus}", device="cuda", name="GPU", memory=80 * 10**9, gpus=gpus, fast_bfloat16=True)
        )


def create(http: TestClient, gpus: int):
    body = {"model": "tiny", "training_file": upload(http, CHAT), "hone": {"training": {"gpus": gpus}}}
    return http.post("/v1/fine_tuning/jobs", json=body)


def test_more_than_any_worker_has_is_refused(http: TestClient, database: Database) -> None:
    add_worker(database, 1)
    add_worker(database, 2)
    answer = create(http, 4)
    assert answer.status_code == 400
    error = error_of(answer)
    assert (error["param"], error["code"]) == ("hone.training.gpus", "too_few_gpus")
    assert "asks for 4 GPUs" in error["message"]
    assert "has 2" in error["message"]


def test_what_a_worker_has_is_taken_and_kept_with_the_job(http: TestClient, database: Database) -> None:
    add_worker(database, 2)
    made = create(http, 2)
    assert made.status_code == 200, made.text
    with database.read() as session:
        assert session.get_one(Job, made.json()["id"]).gpus == 2


def test_where_no_worker_is_known_the_job_waits_for_one(http: TestClient) -> None:
    assert create(http, 2).status_code == 200
