"""Checkpoints as models: under the name that the list tells, in every state of their job."""

import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from openai.types import Model
from sqlalchemy import select
from starlette.testclient import TestClient

from core.resolve import resolve
from core.specs import FineTuneSpec
from core.storage import Storage
from models import lifecycle
from models.database import Database
from models.tables import Checkpoint, Job, Project
from tests.api.driving import EVAL, ITEMS, claim, error_of, run_body, submit, train, upload
from tests.worker.stand_in import FACTS


def save(database: Database, storage: Storage, step: int = 4) -> str:
    """Have the next job run and store a checkpoint, as its worker would; the job's id."""
    taken = claim(database)
    stored = storage.put(f"jobs/{taken.job_id}/1-1/checkpoint-{step}.zip", [b"PK-checkpoint"])
    row = Checkpoint(
        job_id=taken.job_id,
        step=step,
        storage_key=stored.key,
        bytes=stored.bytes,
        sha256=stored.sha256,
        metrics={"train_loss": 1.0},
    )
    with database.write() as session:
        lifecycle.record_checkpoint(session, taken, row)
        spec = FineTuneSpec.model_validate(session.get_one(Job, taken.job_id).spec)
        resolved = resolve(spec, FACTS).model_copy(update={"prompt_template": "alpaca"})
        lifecycle.write_as(session, taken, resolved=resolved.model_dump(mode="json"))
    return taken.job_id


def test_a_checkpoint_of_a_running_job_is_a_model(
    client: OpenAI, http: TestClient, database: Database, storage: Storage
):
    submit(http, suffix="docs")
    job_id = save(database, storage)
    (checkpoint,) = client.fine_tuning.jobs.checkpoints.list(job_id)
    name = checkpoint.fine_tuned_model_checkpoint
    with database.read() as session:
        project = session.scalars(select(Project.name).join(Job).where(Job.id == job_id)).one()
    assert name == f"ft:tiny:{project}:docs:{job_id[-8:]}:ckpt-step-4"
    raw = client.models.with_raw_response.retrieve(name).http_response.json()
    Model.model_validate(raw, strict=True)
    assert raw["hone"] == {"base_model": "tiny", "job_id": job_id, "checkpoint": checkpoint.id}
    with pytest.raises(BadRequestError) as refusal:
        client.models.delete(name)
    assert refusal.value.code == "is_a_checkpoint"
    for unknown in (name + "0", name.replace("docs", "doc"), name.replace("tiny", "tin")):
        with pytest.raises(NotFoundError):
            client.models.retrieve(unknown)


def test_it_keeps_its_name_when_its_job_succeeds(
    client: OpenAI, http: TestClient, database: Database, storage: Storage
):
    job = submit(http)
    train(database, storage)
    (checkpoint,) = client.fine_tuning.jobs.checkpoints.list(job["id"])
    done = client.fine_tuning.jobs.retrieve(job["id"])
    assert checkpoint.fine_tuned_model_checkpoint == f"{done.fine_tuned_model}:ckpt-step-2"
    assert client.models.retrieve(checkpoint.fine_tuned_model_checkpoint).id == checkpoint.fine_tuned_model_checkpoint


def test_a_run_takes_the_checkpoint_of_a_cancelled_job(http: TestClient, database: Database, storage: Storage):
    submit(http)
    job_id = save(database, storage)
    url = f"/v1/fine_tuning/jobs/{job_id}"
    http.post(f"{url}/cancel")
    with database.write() as session:
        session.get_one(Job, job_id).lease_expires_at = 0
        session.flush()
        lifecycle.reap(session, 3)
    assert http.get(url).json()["status"] == "cancelled"
    name = http.get(f"{url}/checkpoints").json()["data"][0]["fine_tuned_model_checkpoint"]
    eval_id = http.post("/v1/evals", json=EVAL).json()["id"]
    body = run_body({"type": "file_id", "id": upload(http, ITEMS, "evals")})
    body["data_source"]["model"] = name
    run = http.post(f"/v1/evals/{eval_id}/runs", json=body)
    assert run.status_code == 201, run.text
    assert run.json()["model"] == name
    with database.read() as session:
        spec = session.get_one(Job, run.json()["id"]).spec
    assert (spec["model"], spec["base_model"], spec["prompt_template"]) == (name, "tiny", "alpaca")


def test_a_job_that_starts_from_a_fine_tune_is_refused_with_its_base(
    http: TestClient, database: Database, storage: Storage
):
    submit(http)
    job_id = save(database, storage)
    listed = http.get(f"/v1/fine_tuning/jobs/{job_id}/checkpoints").json()["data"]
    body = {"model": listed[0]["fine_tuned_model_checkpoint"], "training_file": upload(http)}
    refused = http.post("/v1/fine_tuning/jobs", json=body)
    told = error_of(refused)
    assert (refused.status_code, told["param"], told["code"]) == (400, "model", "not_a_base_model")
    assert "Give 'tiny'" in told["message"]


def test_its_zip_can_be_downloaded(http: TestClient, database: Database, storage: Storage):
    submit(http)
    job_id = save(database, storage)
    url = f"/v1/fine_tuning/jobs/{job_id}/checkpoints"
    checkpoint = http.get(url).json()["data"][0]["id"]
    whole = http.get(f"{url}/{checkpoint}/adapter")
    assert (whole.status_code, whole.content) == (200, b"PK-checkpoint")
    assert whole.headers["content-disposition"].startswith('attachment; filename="checkpoint-4.zip"')
    part = http.get(f"{url}/{checkpoint}/adapter", headers={"Range": "bytes=3-"})
    assert (part.status_code, part.content) == (206, b"checkpoint")
    missing = http.get(f"{url}/ftckpt-none/adapter")
    assert missing.status_code == 404
    assert error_of(missing)["code"] == "not_found"


def test_another_project_may_use_it_by_permission_alone(
    client: OpenAI, http: TestClient, other_key: str, database: Database, storage: Storage
):
    submit(http)
    job_id = save(database, storage)
    name = client.fine_tuning.jobs.checkpoints.list(job_id).data[0].fine_tuned_model_checkpoint
    other = client.with_options(api_key=other_key)
    with pytest.raises(NotFoundError):
        other.models.retrieve(name)
    theirs = http.get("/v1/models", headers={"Authorization": f"Bearer {other_key}"})
    assert theirs.status_code == 200
    with database.read() as session:
        their_id = session.scalars(select(Project.id).where(Project.name == "second")).one()
    client.fine_tuning.checkpoints.permissions.create(name, project_ids=[their_id])
    assert other.models.retrieve(name).id == name
    url = f"/v1/fine_tuning/jobs/{job_id}/checkpoints"
    assert http.get(url, headers={"Authorization": f"Bearer {other_key}"}).status_code == 404
