"""Imports on the files' page, against a hub on this machine."""

import html
import re

import pytest
from starlette.testclient import TestClient

from api.main import create_app
from core.settings import Settings
from tests.api.conftest import small_settings
from tests.api.test_imports import DATASET, ended, hub
from tests.core.test_hub_child import ROWS, jsonl
from tests.dashboard.signing_in import SAME_ORIGIN, sign_in
from tests.hub_server import FakeHub

__all__ = ["hub"]  # a fixture, found by its name here


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """SQLite alone: what these tests look at is the same on PostgreSQL."""
    return sqlite_url


@pytest.fixture
def settings(tmp_path, database_url, hub) -> Settings:
    """A Hone whose operator allows one dataset."""
    return small_settings(tmp_path, database_url).model_copy(update={"hub_datasets": DATASET})


def test_a_dataset_is_imported_and_its_page_says_where_it_is_from(browser: TestClient, http: TestClient, hub: FakeHub):
    commit = hub.add(DATASET, {"train.jsonl": jsonl(ROWS)})
    form = browser.get("/files").text
    assert f"<code>{DATASET}</code>" in form
    assert '<h2 id="imports-title">' not in form
    begun = browser.post("/files/imports", data={"dataset": f" {DATASET} ", "config": "", "split": "", "revision": ""})
    assert (begun.status_code, begun.headers["location"]) == (303, "/files")
    [row] = http.get("/v1/files/imports").json()["data"]
    file_id = ended(http, row["id"])["file_id"]
    part = browser.get("/files/imports").text
    assert f'href="/files/{file_id}"' in part
    assert "hx-get" not in part, "nothing is under way, so nothing is asked for again"
    shown = browser.get(f"/files/{file_id}").text
    assert DATASET in shown
    assert commit[:12] in shown


def test_a_refusal_keeps_what_was_typed_and_a_failure_says_why(browser: TestClient, http: TestClient, hub: FakeHub):
    refused = browser.post("/files/imports", data={"dataset": "<b>/x", "split": "valid"})
    assert refused.status_code == 400
    assert 'value="&lt;b&gt;/x"' in refused.text
    assert 'value="valid"' in refused.text
    refused = browser.post("/files/imports", data={"dataset": "other/data"})
    assert refused.status_code == 403
    assert "operator allows these datasets" in html.unescape(refused.text)
    hub.add(DATASET, {"train.jsonl": jsonl(ROWS)})
    browser.post("/files/imports", data={"dataset": DATASET, "split": "test"})
    [row] = http.get("/v1/files/imports").json()["data"]
    ended(http, row["id"])
    assert "has no split 'test', but: train" in html.unescape(browser.get("/files").text)


def test_one_under_way_is_shown_and_can_be_cancelled(browser: TestClient, http: TestClient, hub: FakeHub):
    hub.add(DATASET, {"train.jsonl": jsonl(ROWS * 100)})
    hub.slow.add("train.jsonl")
    browser.post("/files/imports", data={"dataset": DATASET})
    assert hub.half_sent.wait(60)
    part = browser.get("/files/imports").text
    assert 'hx-get="/files/imports"' in part
    [cancel] = re.findall(r'action="(/files/imports/[^/]+/cancel)"', part)
    assert browser.post(cancel).headers["location"] == "/files"
    assert DATASET not in browser.get("/files/imports").text
    [row] = http.get("/v1/files/imports").json()["data"]
    assert row["status"] == "cancelled"


def test_where_nothing_is_allowed_there_is_no_form(tmp_path, sqlite_url, key):
    app = create_app(small_settings(tmp_path, sqlite_url))
    with TestClient(app, headers=SAME_ORIGIN, follow_redirects=False) as client:
        sign_in(client, key)
        assert "Import from Hugging Face" not in client.get("/files").text
