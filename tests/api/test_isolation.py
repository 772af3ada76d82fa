"""Two projects on one server: for each, the other's things do not exist."""

from collections.abc import Iterator
from typing import Any

import pytest

from core.storage import Storage
from models import accounts
from tests.api.conftest import Shared
from tests.api.driving import EVAL, ITEMS, error_of, evaluate, failed_import, run_body, submit, train, upload
from tests.conftest import make_key


@pytest.fixture(scope="module")
def theirs(shared: Shared) -> dict[str, Any]:
    """One of everything, ended and stored, of the first project; and a second project's key."""
    storage = Storage(shared.storage.as_uri())
    # No name below .invalid leads anywhere (RFC 6761): the delivery waits for its next try.
    hook = {"name": "hook", "url": "https://receiver.invalid/", "event_types": ["fine_tuning.job.succeeded"]}
    endpoint = shared.http.post("/v1/webhook_endpoints", json=hook).json()
    job = submit(shared.http)
    train(shared.database, storage)
    eval_id = shared.http.post("/v1/evals", json=EVAL).json()["id"]
    file_id = upload(shared.http, ITEMS, "evals")
    run = shared.http.post(f"/v1/evals/{eval_id}/runs", json=run_body({"type": "file_id", "id": file_id})).json()
    evaluate(shared.database, storage)
    item = shared.http.get(f"/v1/evals/{eval_id}/runs/{run['id']}/output_items").json()["data"][0]
    [checkpoint] = shared.http.get(f"/v1/fine_tuning/jobs/{job['id']}/checkpoints").json()["data"]
    announced = {"filename": "f", "purpose": "fine-tune", "bytes": 1, "mime_type": "text/jsonl"}
    upload_id = shared.http.post("/v1/uploads", json=announced).json()["id"]
    model_id = shared.http.get("/v1/models").json()["data"][-1]["id"]
    with shared.database.write() as session:
        third = accounts.create_project(session, "third").id
    permissions = f"/v1/fine_tuning/checkpoints/{model_id}/permissions"
    [permission] = shared.http.post(permissions, json={"project_ids": [third]}).json()["data"]
    [delivery] = shared.http.get(f"/v1/webhook_endpoints/{endpoint['id']}/deliveries").json()["data"]
    key = make_key(shared.database, "second")
    return {
        "headers": {"Authorization": f"Bearer {key}"},
        "file_id": file_id,
        "training_file": job["training_file"],
        "job_id": job["id"],
        "checkpoint_id": checkpoint["id"],
        "model_id": model_id,
        "permission_id": permission["id"],
        "eval_id": eval_id,
        "run_id": run["id"],
        "item_id": item["id"],
        "endpoint_id": endpoint["id"],
        "upload_id": upload_id,
        "import_id": failed_import(shared.database),
        "delivery_id": delivery["id"],
        "index": "0",
    }


def _routes(shared: Shared) -> Iterator[tuple[str, str]]:
    for path, methods in shared.http.get("/openapi.json").json()["paths"].items():
        if "{" in path:
            yield from ((method.upper(), path) for method in methods)


def test_every_route_with_an_id_answers_404_to_another_project(shared: Shared, theirs: dict[str, Any]):
    # From the documentation, so that a route that is added later is asked too.
    asked = 0
    for method, path in _routes(shared):
        url = path.format(**theirs)
        body = None
        if (method, path) == ("POST", "/v1/evals/{eval_id}"):
            body = {"name": "mine now"}
        if (method, path) == ("POST", "/v1/evals/{eval_id}/runs"):
            body = run_body({"type": "file_content", "content": [{"item": {"prompt": "p", "completion": "c"}}]})
        if path == "/v1/fine_tuning/checkpoints/{model_id}/permissions":
            body = {"project_ids": ["proj_any"]}
        if path == "/v1/uploads/{upload_id}/complete":
            body = {"part_ids": ["part_1"]}
        if path == "/v1/webhook_endpoints/{endpoint_id}" and method == "POST":
            body = {"name": "mine now"}
        if path == "/v1/webhook_endpoints/{endpoint_id}/test":
            body = {"event_type": "eval.run.failed"}
        answer = shared.http.request(method, url, json=body, headers=theirs["headers"])
        assert answer.status_code == 404, (method, path, answer.text)
        assert error_of(answer)["code"] in ("not_found", "model_not_found")
        asked += 1
    assert asked >= 20


def test_the_owner_still_has_everything(shared: Shared, theirs: dict[str, Any]):
    seen = 0
    for method, path in _routes(shared):
        if method == "GET" and "/preflight" not in path:  # which an evaluation's file has none of
            assert shared.http.get(path.format(**theirs)).status_code == 200, path
            seen += 1
    assert seen >= 12
    assert shared.http.get(f"/v1/evals/{theirs['eval_id']}").json()["name"] == "python"


def test_lists_show_none_of_it(shared: Shared, theirs: dict[str, Any]):
    for path in ("/v1/files", "/v1/files/imports", "/v1/fine_tuning/jobs", "/v1/evals", "/v1/webhook_endpoints"):
        assert shared.http.get(path, headers=theirs["headers"]).json()["data"] == []
    models = shared.http.get("/v1/models", headers=theirs["headers"]).json()["data"]
    assert {model["owned_by"] for model in models} == {"hone"}


@pytest.mark.parametrize(
    ("path", "cursor"), [("/v1/files", "file_id"), ("/v1/fine_tuning/jobs", "job_id"), ("/v1/evals", "eval_id")]
)
def test_a_cursor_of_another_project_opens_nothing(shared: Shared, theirs: dict[str, Any], path: str, cursor: str):
    # Any id that looks right is a cursor, for its row may have been deleted; what it leads to is the asker's own.
    answer = shared.http.get(path, params={"after": theirs[cursor]}, headers=theirs["headers"])
    assert (answer.status_code, answer.json()["data"]) == (200, [])


def test_another_projects_things_can_not_be_named_in_a_body(shared: Shared, theirs: dict[str, Any]):
    headers = theirs["headers"]
    job = {"model": "tiny", "training_file": theirs["training_file"]}
    answer = shared.http.post("/v1/fine_tuning/jobs", json=job, headers=headers)
    assert (answer.status_code, error_of(answer)["code"]) == (400, "file_not_found")
    mine = shared.http.post("/v1/evals", json=EVAL, headers=headers).json()["id"]
    try:
        source = {"type": "file_id", "id": theirs["file_id"]}
        answer = shared.http.post(f"/v1/evals/{mine}/runs", json=run_body(source), headers=headers)
        assert (answer.status_code, error_of(answer)["param"]) == (400, "data_source.source.id")
        body = run_body({"type": "file_content", "content": [{"item": {"prompt": "p", "completion": "c"}}]})
        body["data_source"]["model"] = theirs["model_id"]
        answer = shared.http.post(f"/v1/evals/{mine}/runs", json=body, headers=headers)
        assert (answer.status_code, error_of(answer)["param"]) == (400, "data_source.model")
        # A run is only reached through its own eval.
        answer = shared.http.get(f"/v1/evals/{mine}/runs/{theirs['run_id']}", headers=headers)
        assert answer.status_code == 404
    finally:
        shared.http.delete(f"/v1/evals/{mine}", headers=headers)
