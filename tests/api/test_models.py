import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from openai.types import Model, ModelDeleted
from starlette.testclient import TestClient

from core.storage import Storage
from models.database import Database
from tests.api.driving import CHAT, EVAL, ITEMS, error_of, run_body, submit, train, upload


def test_openais_client_lists_retrieves_and_deletes(client: OpenAI, database: Database, storage: Storage):
    file = client.files.create(file=("train.jsonl", CHAT), purpose="fine-tune")
    client.fine_tuning.jobs.create(model="tiny", training_file=file.id)
    train(database, storage)
    raw = client.models.with_raw_response.list().http_response.json()
    for model in raw["data"]:
        Model.model_validate(model, strict=True)
    assert [(model["id"], model["owned_by"]) for model in raw["data"][:2]] == [("org/base", "hone"), ("tiny", "hone")]
    tuned = raw["data"][2]["id"]
    assert client.models.retrieve("org/base").id == "org/base"  # sent as org%2Fbase
    deleted = client.models.with_raw_response.delete(tuned).http_response.json()
    assert ModelDeleted.model_validate(deleted, strict=True) == ModelDeleted(id=tuned, object="model", deleted=True)
    with pytest.raises(NotFoundError):
        client.models.retrieve(tuned)
    with pytest.raises(BadRequestError) as refusal:
        client.models.delete("org/base")
    assert refusal.value.param == "model"
    assert len(client.files.list().data) == 3  # files stay


def test_a_model_that_a_job_uses_stays(http: TestClient, database: Database, storage: Storage):
    submit(http)
    train(database, storage)
    model = http.get("/v1/models").json()["data"][-1]["id"]
    eval_id = http.post("/v1/evals", json=EVAL).json()["id"]
    body = run_body({"type": "file_id", "id": upload(http, ITEMS, "evals")})
    body["data_source"]["model"] = model
    run = http.post(f"/v1/evals/{eval_id}/runs", json=body).json()
    refused = http.delete(f"/v1/models/{model}")
    assert refused.status_code == 400
    assert run["id"] in error_of(refused)["message"]
