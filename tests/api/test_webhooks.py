"""Webhooks as OpenAI's client sees them: endpoints, signed events, the log of deliveries, and replay."""

from collections.abc import Iterator
from typing import get_args

import openai
import pytest
from openai import OpenAI
from openai.types.webhooks import (
    DeletedWebhookEndpoint,
    EvalRunCanceledWebhookEvent,
    EvalRunFailedWebhookEvent,
    EvalRunSucceededWebhookEvent,
    FineTuningJobCancelledWebhookEvent,
    FineTuningJobFailedWebhookEvent,
    FineTuningJobSucceededWebhookEvent,
    WebhookEndpoint,
    WebhookEndpointList,
    WebhookEndpointTestResult,
    WebhookEndpointWithSecret,
    WebhookEventTypeList,
)
from starlette.testclient import TestClient

from api.main import create_app
from api.webhook_schemas import EventType
from core.errors import TrainingError
from core.settings import Settings
from core.storage import Storage
from models.database import Database
from models.webhooks import EVENT_TYPES
from tests.api.driving import EVAL, ITEMS, error_of, evaluate, fail_job, run_body, submit, train, upload
from tests.api.receiver import Receiver, receiving
from tests.waiting import wait_for

ALL = list(get_args(EventType))


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Webhooks may go to the loopback, and workers' events are looked for often."""
    return settings.model_copy(update={"webhook_private_targets": True, "poll_seconds": 0.05})


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


def make(http: TestClient, url: str, event_types: list[str] = ALL) -> dict:
    answer = http.post("/v1/webhook_endpoints", json={"name": "ours", "url": url, "event_types": event_types})
    assert answer.status_code == 200, answer.text
    return answer.json()


def deliveries(http: TestClient, endpoint: dict) -> list[dict]:
    return http.get(f"/v1/webhook_endpoints/{endpoint['id']}/deliveries").json()["data"]


def test_every_event_that_hone_knows_can_be_asked_for():
    assert set(ALL) == set(EVENT_TYPES.values())


def test_the_client_drives_every_method_and_every_answer_is_strictly_openais(client: OpenAI, receiver: Receiver):
    raw = client.webhooks.with_raw_response
    made = raw.create(name="ours", url=receiver.url, event_types=["eval.run.failed", "eval.run.failed"])
    endpoint = WebhookEndpointWithSecret.model_validate_json(made.text, strict=True)
    assert endpoint.event_types == ["eval.run.failed"]
    assert endpoint.signing_secret.startswith("whsec_")

    seen = WebhookEndpoint.model_validate_json(raw.retrieve(endpoint.id).text, strict=True)
    assert seen.signing_secret_hint == f"whsec_...{endpoint.signing_secret[-4:]}"
    assert endpoint.signing_secret not in raw.retrieve(endpoint.id).text

    changed = raw.update(endpoint.id, name="new", url=receiver.url + "2", event_types=["eval.run.canceled"])
    renamed = WebhookEndpoint.model_validate_json(changed.text, strict=True)
    assert (renamed.name, renamed.url, renamed.event_types) == ("new", receiver.url + "2", ["eval.run.canceled"])
    again = WebhookEndpoint.model_validate_json(raw.update(endpoint.id, name="new").text, strict=True)
    assert again.updated_at == renamed.updated_at

    tested = raw.test(endpoint.id, event_type="fine_tuning.job.failed")
    assert WebhookEndpointTestResult.model_validate_json(tested.text, strict=True).status_code == 204
    headers, body = receiver.requests[-1]
    sample = client.webhooks.unwrap(body, headers, secret=endpoint.signing_secret)
    assert isinstance(sample, FineTuningJobFailedWebhookEvent)

    rotated = WebhookEndpointWithSecret.model_validate_json(raw.rotate_secret(endpoint.id).text, strict=True)
    assert rotated.signing_secret != endpoint.signing_secret
    types = client.webhooks.event_types.with_raw_response.list()
    assert WebhookEventTypeList.model_validate_json(types.text, strict=True).data == ALL
    assert WebhookEndpointList.model_validate_json(raw.list(limit=1).text, strict=True).data[0].id == endpoint.id
    assert DeletedWebhookEndpoint.model_validate_json(raw.delete(endpoint.id).text, strict=True).deleted
    with pytest.raises(openai.NotFoundError):
        client.webhooks.retrieve(endpoint.id)


def test_endpoints_are_listed_newest_first_page_by_page(client: OpenAI, receiver: Receiver):
    ids = [client.webhooks.create(name=str(n), url=receiver.url, event_types=ALL).id for n in range(3)]
    assert [endpoint.id for endpoint in client.webhooks.list(limit=1)] == ids[::-1]
    assert [endpoint.id for endpoint in client.webhooks.list(after=ids[1])] == ids[:1]


def make_run(http: TestClient) -> dict:
    eval_id = http.post("/v1/evals", json=EVAL).json()["id"]
    source = {"type": "file_id", "id": upload(http, ITEMS, "evals")}
    return http.post(f"/v1/evals/{eval_id}/runs", json=run_body(source)).json()


def test_each_end_of_a_job_and_of_a_run_comes_as_openais_typed_event(
    http: TestClient, receiver: Receiver, database: Database, storage: Storage
):
    endpoint = make(http, receiver.url)
    expected = {}
    expected[submit(http)["id"]] = FineTuningJobSucceededWebhookEvent
    train(database, storage)
    expected[submit(http)["id"]] = FineTuningJobFailedWebhookEvent
    fail_job(database, TrainingError("no"))
    cancelled = submit(http)["id"]
    expected[cancelled] = FineTuningJobCancelledWebhookEvent
    http.post(f"/v1/fine_tuning/jobs/{cancelled}/cancel")
    expected[make_run(http)["id"]] = EvalRunSucceededWebhookEvent
    evaluate(database, storage)
    expected[make_run(http)["id"]] = EvalRunFailedWebhookEvent
    fail_job(database, TrainingError("no"))
    run = make_run(http)
    expected[run["id"]] = EvalRunCanceledWebhookEvent
    assert http.post(f"/v1/evals/{run['eval_id']}/runs/{run['id']}/cancel").status_code == 200

    wait_for(lambda: len(receiver.requests) == 6)
    with OpenAI(api_key="any") as client:
        events = [
            client.webhooks.unwrap(body, headers, secret=endpoint["signing_secret"])
            for headers, body in receiver.requests
        ]
        for (_, body), event in zip(receiver.requests, events, strict=True):
            type(event).model_validate_json(body, strict=True)
    assert {event.data.id: type(event) for event in events} == expected
    assert len({event.id for event in events}) == 6
    wait_for(lambda: [d["status"] for d in deliveries(http, endpoint)] == ["delivered"] * 6)


def test_only_the_events_asked_for_come_and_only_to_ones_own_project(
    http: TestClient, receiver: Receiver, other_key: str
):
    theirs = {"Authorization": f"Bearer {other_key}"}
    body = {"name": "n", "url": receiver.url, "event_types": ALL}
    foreign = http.post("/v1/webhook_endpoints", json=body, headers=theirs).json()
    deaf = make(http, receiver.url, ["fine_tuning.job.succeeded"])
    hearing = make(http, receiver.url, ["fine_tuning.job.cancelled"])
    http.post(f"/v1/fine_tuning/jobs/{submit(http)['id']}/cancel")
    wait_for(lambda: [d["status"] for d in deliveries(http, hearing)] == ["delivered"])
    assert deliveries(http, deaf) == []
    assert http.get(f"/v1/webhook_endpoints/{foreign['id']}/deliveries", headers=theirs).json()["data"] == []
    assert len(receiver.requests) == 1


def test_a_delivery_is_replayed_under_its_old_id(http: TestClient, receiver: Receiver):
    endpoint = make(http, receiver.url)
    http.post(f"/v1/fine_tuning/jobs/{submit(http)['id']}/cancel")
    wait_for(lambda: [d["status"] for d in deliveries(http, endpoint)] == ["delivered"])
    [delivery] = deliveries(http, endpoint)
    replay = f"/v1/webhook_endpoints/{endpoint['id']}/deliveries/{delivery['id']}/replay"
    assert http.post(replay).json()["status"] == "pending"
    wait_for(lambda: len(deliveries(http, endpoint)[0]["tries"]) == 2)
    (first, one), (second, two) = receiver.requests
    assert first["webhook-id"] == second["webhook-id"] == delivery["event_id"]
    assert one == two
    assert [entry["status_code"] for entry in deliveries(http, endpoint)[0]["tries"]] == [204, 204]
    unknown = http.post(replay.replace(delivery["id"], "whd_none"))
    assert unknown.status_code == 404


def test_after_a_rotation_both_secrets_verify_only_if_asked(http: TestClient, receiver: Receiver):
    endpoint = make(http, receiver.url)
    path = f"/v1/webhook_endpoints/{endpoint['id']}"
    old = endpoint["signing_secret"]
    new = http.post(f"{path}/rotate_secret", json={"keep_old_secret_active_for_24_hours": True}).json()[
        "signing_secret"
    ]
    http.post(f"{path}/test", json={"event_type": "eval.run.failed"})
    newest = http.post(f"{path}/rotate_secret").json()["signing_secret"]
    http.post(f"{path}/test", json={"event_type": "eval.run.failed"})
    (both, first), (single, second) = receiver.requests
    with OpenAI(api_key="any") as client:
        for secret in (old, new):
            client.webhooks.verify_signature(first, both, secret=secret)
        client.webhooks.verify_signature(second, single, secret=newest)
        for secret in (old, new):
            with pytest.raises(openai.InvalidWebhookSignatureError):
                client.webhooks.verify_signature(second, single, secret=secret)


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("event_types", ["batch.completed"], "event_types"),
        ("event_types", [], "event_types"),
        ("url", "ftp://example.com", "url"),
        ("url", "https://me:secret@example.com", "url"),
        ("url", "no url", "url"),
        ("name", "", "name"),
        ("colour", "red", "colour"),
    ],
)
def test_a_body_that_makes_no_sense_is_a_400_that_names_the_field(http: TestClient, field, value, param):
    body = {"name": "n", "url": "https://example.com/hook", "event_types": ALL, field: value}
    answer = http.post("/v1/webhook_endpoints", json=body)
    assert answer.status_code == 400
    assert error_of(answer)["param"].startswith(param)


def test_a_test_of_a_receiver_that_is_away_is_a_400(http: TestClient):
    with receiving() as gone:
        pass
    endpoint = make(http, gone.url)
    answer = http.post(f"/v1/webhook_endpoints/{endpoint['id']}/test", json={"event_type": "eval.run.failed"})
    assert answer.status_code == 400
    assert error_of(answer)["code"] == "webhook_unreachable"


def test_a_project_has_at_most_twenty_endpoints(http: TestClient, receiver: Receiver):
    for _ in range(20):
        make(http, receiver.url)
    body = {"name": "n", "url": receiver.url, "event_types": ALL}
    assert error_of(http.post("/v1/webhook_endpoints", json=body))["code"] == "too_many_endpoints"


def test_private_targets_are_refused_by_default(settings: Settings, key: str):
    careful = settings.model_copy(update={"webhook_private_targets": False})
    with TestClient(create_app(careful), headers={"Authorization": f"Bearer {key}"}) as http:
        for url in ("https://127.0.0.1/x", "https://[::1]/x", "https://localhost/x", "http://example.com/x"):
            answer = http.post("/v1/webhook_endpoints", json={"name": "n", "url": url, "event_types": ALL})
            assert answer.status_code == 400, url
            assert error_of(answer)["param"] == "url"
