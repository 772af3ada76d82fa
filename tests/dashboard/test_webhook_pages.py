"""Webhooks in the dashboard: a secret shown once, a real receiver, and deliveries that can be sent again."""

import re
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from api.dashboard.webhook_pages import EVENTS
from core.settings import Settings
from tests.api.driving import submit
from tests.api.receiver import Receiver, receiving
from tests.waiting import wait_for


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """SQLite alone: what these tests look at is the same on PostgreSQL."""
    return sqlite_url


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Webhooks may go to the loopback, and events are looked for often."""
    return settings.model_copy(update={"webhook_private_targets": True, "poll_seconds": 0.05})


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


def form(url: str, *events: str, name: str = "ours") -> dict[str, str]:
    return {"name": name, "url": url, **{f"event:{event}": "true" for event in events}}


def make(browser: TestClient, http: TestClient, url: str) -> str:
    """The path of a new endpoint's page."""
    assert browser.post("/webhooks", data=form(url, *EVENTS)).status_code == 200
    return f"/webhooks/{http.get('/v1/webhook_endpoints').json()['data'][0]['id']}"


def test_a_secret_is_shown_once(browser: TestClient, http: TestClient, receiver: Receiver):
    assert "No webhooks yet" in browser.get("/webhooks").text
    made = browser.post("/webhooks", data=form(receiver.url, "eval.run.failed", name="<b>"))
    [secret] = re.findall(r'data-copy="(whsec_[^"]+)"', made.text)
    [endpoint] = http.get("/v1/webhook_endpoints").json()["data"]
    assert (endpoint["name"], endpoint["url"], endpoint["event_types"]) == ("<b>", receiver.url, ["eval.run.failed"])
    assert endpoint["signing_secret_hint"][-4:] == secret[-4:]
    again = browser.get(f"/webhooks/{endpoint['id']}").text
    assert secret not in again
    assert endpoint["signing_secret_hint"] in again
    assert "&lt;b&gt;" in browser.get("/webhooks").text
    renewed = browser.post(f"/webhooks/{endpoint['id']}/rotate", data={"keep": "true"}).text
    assert secret not in renewed
    assert len(re.findall(r'data-copy="whsec_[^"]{40,}"', renewed)) == 1
    assert browser.post(f"/webhooks/{endpoint['id']}/delete").headers["location"] == "/webhooks"
    assert http.get("/v1/webhook_endpoints").json()["data"] == []


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"name": " "}, "name", "at least 1 character"),
        ({"url": "ftp://example.com"}, "url", "begins with https://"),
        ({"url": "nowhere"}, "url", "begins with https://"),
        ({f"event:{event}": "" for event in EVENTS}, "event_types", "at least 1 item"),
        ({"name": "nul \0"}, None, "can&#39;t be stored"),
    ],
)
def test_what_is_wrong_is_said_at_its_field(
    browser: TestClient, http: TestClient, receiver: Receiver, change: dict[str, str], field: str | None, words: str
):
    path = make(browser, http, receiver.url)
    before = http.get("/v1/webhook_endpoints").json()["data"]
    for place in ("/webhooks", path):
        answer = browser.post(place, data={**form("https://example.com/x", *EVENTS), **change})
        assert answer.status_code == 400
        [alert] = re.findall(r'role="alert">([^<]*)', answer.text)
        assert words in alert
        assert answer.text.count('id="problem"') == (field is not None)
        wrong = rf'id="f-{field}"[^>]*aria-invalid="true"|<fieldset[^>]*aria-describedby="problem"'
        assert (re.search(wrong, answer.text) is not None) == (field is not None)
    assert http.get("/v1/webhook_endpoints").json()["data"] == before


def test_an_endpoint_is_changed(browser: TestClient, http: TestClient, receiver: Receiver):
    path = make(browser, http, receiver.url)
    text = browser.get(path).text
    assert text.count('value="true" checked') == len(EVENTS) + 1  # and the old secret that is kept
    answer = browser.post(path, data=form("http://127.0.0.1:9/x", "fine_tuning.job.failed", name="new"))
    assert answer.headers["location"] == path
    [endpoint] = http.get("/v1/webhook_endpoints").json()["data"]
    assert (endpoint["name"], endpoint["url"]) == ("new", "http://127.0.0.1:9/x")
    assert endpoint["event_types"] == ["fine_tuning.job.failed"]


def test_a_sample_is_sent_at_once(browser: TestClient, http: TestClient, receiver: Receiver):
    path = make(browser, http, receiver.url)
    receiver.statuses = [204, 500]
    for status in (204, 500):
        answer = browser.post(f"{path}/test", data={"event_type": "eval.run.canceled"})
        assert answer.headers["location"] == f"{path}?answered={status}"
        assert f"answered with {status}" in browser.get(answer.headers["location"]).text
    assert "eval.run.canceled" in receiver.requests[0][1]
    assert browser.post(f"{path}/test", data={"event_type": "nothing"}).status_code == 400
    with receiving() as gone:
        pass
    browser.post(path, data=form(gone.url, *EVENTS))
    answer = browser.post(f"{path}/test", data={"event_type": "eval.run.failed"})
    assert answer.status_code == 400
    assert "could not be delivered" in answer.text


def test_deliveries_tell_their_tries_and_can_be_sent_again(browser: TestClient, http: TestClient, receiver: Receiver):
    path = make(browser, http, receiver.url)
    assert "None yet" in browser.get(path).text
    job_id = submit(http)["id"]
    browser.post(f"/jobs/{job_id}/cancel")
    wait_for(lambda: "delivered" in browser.get(f"{path}/deliveries").text)
    text = browser.get(path).text
    assert "fine_tuning.job.cancelled" in text
    assert re.search(r'class="num good">204<', text)
    [replay] = re.findall(rf'action="({path}/deliveries/[^"]+/replay)"', text)
    assert browser.post(replay).headers["location"] == path
    wait_for(lambda: len(receiver.requests) == 2)
    assert receiver.requests[0][0]["webhook-id"] == receiver.requests[1][0]["webhook-id"]


def test_one_that_nobody_answers_says_when_it_is_tried_again(browser: TestClient, http: TestClient, receiver: Receiver):
    receiver.statuses = [503]
    path = make(browser, http, receiver.url)
    browser.post(f"/jobs/{submit(http)['id']}/cancel")
    wait_for(lambda: "Try 2" in browser.get(path).text)
    assert re.search(r'class="num bad">503<', browser.get(path).text)
    assert "/replay" not in browser.get(path).text
