"""Permissions of checkpoints: who may use a model, who may say so, and what happens when that ends."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import pytest
from sqlalchemy import func, select
from starlette.testclient import TestClient

from core.storage import Storage
from models import accounts
from models.database import Database
from models.tables import CheckpointPermission, Project
from tests.api.driving import EVAL, ITEMS, error_of, run_body, submit, train, upload


class Grantee:
    """A second project on the same server."""

    def __init__(self, http: TestClient, database: Database, name: str = "second") -> None:
        self._http = http
        with database.write() as session:
            project = accounts.create_project(session, name)
            self.project_id = project.id
            self._headers = {"Authorization": f"Bearer {accounts.create_key(session, project, 'test')}"}

    def ask(self, method: str, url: str, **options: Any) -> Any:
        return self._http.request(method, url, headers=self._headers, **options)

    def models(self) -> list[str]:
        return [model["id"] for model in self.ask("GET", "/v1/models").json()["data"]]

    def run(self, model: str) -> Any:
        eval_id = self.ask("POST", "/v1/evals", json=EVAL).json()["id"]
        files = {"file": ("items.jsonl", ITEMS)}
        items = self.ask("POST", "/v1/files", data={"purpose": "evals"}, files=files).json()["id"]
        body = run_body({"type": "file_id", "id": items})
        body["data_source"]["model"] = model
        return self.ask("POST", f"/v1/evals/{eval_id}/runs", json=body)


@pytest.fixture
def other(http: TestClient, database: Database) -> Grantee:
    return Grantee(http, database)


@pytest.fixture
def model(http: TestClient, database: Database, storage: Storage) -> str:
    submit(http, model="org/base")
    train(database, storage)
    return str(http.get("/v1/models").json()["data"][-1]["id"])


def url_of(model: str) -> str:
    return f"/v1/fine_tuning/checkpoints/{quote(model, safe='')}/permissions"


def grant(http: TestClient, model: str, *project_ids: str) -> Any:
    return http.post(url_of(model), json={"project_ids": project_ids})


def test_a_permission_lets_another_project_use_a_model_until_it_is_deleted(http, other: Grantee, model: str):
    assert model not in other.models()
    assert other.ask("GET", f"/v1/models/{model}").status_code == 404
    refused = other.run(model)
    assert (refused.status_code, error_of(refused)["param"]) == (400, "data_source.model")

    granted = grant(http, model, other.project_id).json()
    [permission] = granted["data"]
    assert granted["has_more"] is False
    assert permission["object"] == "checkpoint.permission"
    assert permission["project_id"] == other.project_id
    assert model in other.models()
    assert other.ask("GET", f"/v1/models/{model}").json()["id"] == model
    assert other.run(model).status_code == 201
    adapter = http.get(f"/v1/models/{model}").json()["hone"]["adapter_file"]
    assert other.ask("GET", f"/v1/files/{adapter}/content").status_code == 404  # to use it is not to have it

    gone = http.delete(f"{url_of(model)}/{permission['id']}")
    assert gone.json() == {"id": permission["id"], "object": "checkpoint.permission", "deleted": True}
    assert model not in other.models()
    assert other.run(model).status_code == 400
    assert http.delete(f"{url_of(model)}/{permission['id']}").status_code == 404


def test_only_the_owner_manages_a_model(http, database: Database, other: Grantee, model: str):
    third = Grantee(http, database, "third")
    body = {"project_ids": [third.project_id]}
    assert other.ask("POST", url_of(model), json=body).status_code == 404  # it does not exist for them
    [permission] = grant(http, model, other.project_id).json()["data"]
    for method, url in (
        ("POST", url_of(model)),
        ("GET", url_of(model)),
        ("DELETE", f"{url_of(model)}/{permission['id']}"),
        ("DELETE", f"/v1/models/{quote(model, safe='')}"),
    ):
        refused = other.ask(method, url, json=body if method == "POST" else None)
        assert (refused.status_code, error_of(refused)["code"]) == (403, "not_the_owner"), (method, url)
    assert third.models() == ["org/base", "tiny"]


def test_granting_again_keeps_the_first_permission_also_at_once(http, database: Database, other: Grantee, model: str):
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: grant(http, model, other.project_id, other.project_id), range(4)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["data"][0]["id"] for answer in answers}) == 1
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(CheckpointPermission)) == 1


def test_permissions_are_listed_by_page_order_and_project(http, database: Database, model: str):
    projects = [Grantee(http, database, f"p{n}").project_id for n in range(3)]
    ids = [permission["id"] for permission in grant(http, model, *projects).json()["data"]]
    first = http.get(url_of(model), params={"limit": 2}).json()
    assert [row["id"] for row in first["data"]] == [ids[2], ids[1]]
    assert (first["has_more"], first["first_id"], first["last_id"]) == (True, ids[2], ids[1])
    rest = http.get(url_of(model), params={"limit": 2, "after": first["last_id"]}).json()
    assert ([row["id"] for row in rest["data"]], rest["has_more"]) == ([ids[0]], False)
    ascending = http.get(url_of(model), params={"order": "ascending"}).json()
    assert [row["id"] for row in ascending["data"]] == ids
    one = http.get(url_of(model), params={"project_id": projects[1]}).json()
    assert [row["id"] for row in one["data"]] == [ids[1]]


@pytest.mark.parametrize(
    ("project_ids", "param", "code"),
    [
        ([], "project_ids", "invalid_value"),
        (["proj_none"], "project_ids[0]", "project_not_found"),
        (["OWNER"], "project_ids[0]", "own_project"),
        ([1], "project_ids[0]", "invalid_value"),
    ],
)
def test_a_permission_that_makes_no_sense_is_refused_and_none_is_made(http, database, model, project_ids, param, code):
    with database.read() as session:
        owner = session.scalar(select(Project.id))
    answer = http.post(
        url_of(model), json={"project_ids": [owner if name == "OWNER" else name for name in project_ids]}
    )
    assert answer.status_code == 400
    assert (error_of(answer)["param"], error_of(answer)["code"]) == (param, code)
    assert http.get(url_of(model)).json()["data"] == []


def test_deleting_a_model_takes_its_permissions_along_and_waits_for_the_others_runs(http, database, other, model):
    grant(http, model, other.project_id)
    run = other.run(model).json()
    refused = http.delete(f"/v1/models/{model}")
    assert (refused.status_code, error_of(refused)["code"]) == (400, "model_in_use")
    assert run["id"] not in refused.text  # another project's
    other.ask("POST", f"/v1/evals/{run['eval_id']}/runs/{run['id']}/cancel")
    assert http.delete(f"/v1/models/{model}").status_code == 200
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(CheckpointPermission)) == 0
    assert grant(http, model, other.project_id).status_code == 404
    assert upload(http)


def test_a_checkpoint_has_permissions_of_its_own_which_outlive_its_model(http, other: Grantee, model: str):
    job = http.get("/v1/fine_tuning/jobs").json()["data"][0]
    [checkpoint] = http.get(f"/v1/fine_tuning/jobs/{job['id']}/checkpoints").json()["data"]
    name = checkpoint["fine_tuned_model_checkpoint"]
    assert grant(http, name, other.project_id).status_code == 200
    assert name in other.models()
    assert model not in other.models()
    assert other.ask("GET", f"/v1/models/{name}").json()["hone"]["job_id"] == job["id"]
    assert other.run(name).status_code == 201
    assert http.get(url_of(model)).json()["data"] == []
    assert http.delete(f"/v1/models/{model}").status_code == 200
    [permission] = http.get(url_of(name)).json()["data"]
    assert name in other.models()
    assert http.delete(f"{url_of(name)}/{permission['id']}").status_code == 200
    assert other.ask("GET", f"/v1/models/{name}").status_code == 404
    assert name not in other.models()
