"""Every list by pages, while others are added to it."""

from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.api.conftest import Shared
from tests.api.driving import EVAL, ITEMS, error_of, run_body, submit, upload

Make = Callable[[], str]


def _post(http: TestClient, url: str, body: dict[str, Any]) -> str:
    answer = http.post(url, json=body)
    assert answer.status_code in (200, 201), answer.text
    return str(answer.json()["id"])


def _lists(http: TestClient) -> dict[str, tuple[str, Make]]:
    """The URL of each list that a client can add to, and how."""
    training, items = upload(http), upload(http, ITEMS, "evals")
    eval_id = _post(http, "/v1/evals", EVAL)
    run = run_body({"type": "file_id", "id": items})
    hook = {"name": "hook", "url": "https://receiver.invalid/", "event_types": ["eval.run.failed"]}
    return {
        "files": ("/v1/files", lambda: upload(http)),
        "jobs": ("/v1/fine_tuning/jobs", lambda: str(submit(http, training_file=training)["id"])),
        "evals": ("/v1/evals", lambda: _post(http, "/v1/evals", EVAL)),
        "runs": (f"/v1/evals/{eval_id}/runs", lambda: _post(http, f"/v1/evals/{eval_id}/runs", run)),
        "webhooks": ("/v1/webhook_endpoints", lambda: _post(http, "/v1/webhook_endpoints", hook)),
    }


@pytest.mark.parametrize("name", ["files", "jobs", "evals", "runs", "webhooks"])
def test_a_walk_through_a_list_meets_each_row_once_while_others_come(http: TestClient, name: str):
    url, make = _lists(http)[name]
    for _ in range(3):
        make()
    there = [row["id"] for row in http.get(url, params={"limit": 100}).json()["data"]]
    seen: list[str] = []
    page = http.get(url, params={"limit": 2}).json()
    while True:
        assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
        seen += [row["id"] for row in page["data"]]
        if len(seen) >= len(there) or not page["has_more"]:
            break
        make()
        page = http.get(url, params={"limit": 2, "after": page["last_id"]}).json()
    assert seen[: len(there)] == there
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("limit", [0, -1, 10_001, "x", ""])
def test_a_limit_that_is_none_is_a_400(shared: Shared, limit: Any):
    for url in ("/v1/files", "/v1/fine_tuning/jobs", "/v1/evals", "/v1/webhook_endpoints"):
        answer = shared.http.get(url, params={"limit": limit})
        assert (answer.status_code, error_of(answer)["param"]) == (400, "limit")


def test_an_empty_list_has_no_ids(shared: Shared):
    empty = {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
    for url in ("/v1/files", "/v1/fine_tuning/jobs", "/v1/evals", "/v1/webhook_endpoints"):
        assert shared.http.get(url).json() == empty
