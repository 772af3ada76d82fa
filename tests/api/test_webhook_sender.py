"""The sender: retries, give-ups, lost processes, targets inside, and hints that never wait for it."""

import threading
import time
from collections.abc import Iterator

import pytest
import redis
from openai import OpenAI
from sqlalchemy import func, select, update
from starlette.testclient import TestClient

import api.webhook_sender
from api.main import create_app
from api.webhook_sender import WebhookSender, send
from core.settings import Settings
from models import webhooks
from models.base import db_now
from models.database import Database
from models.tables import Project, WebhookDelivery, WebhookEndpoint
from models.webhooks import MAX_TRIES, PAUSES, Outgoing
from tests.api.driving import submit
from tests.api.receiver import Receiver, receiving
from tests.api.test_relay import hints
from tests.api.test_webhooks import ALL
from tests.waiting import wait_for

SECRET = "whsec_" + "A" * 43 + "="


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"webhook_private_targets": True, "poll_seconds": 600})


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


@pytest.fixture
def sender(settings: Settings, database: Database) -> WebhookSender:
    """A sender that is called by hand."""
    return WebhookSender(database, settings)


@pytest.fixture
def delivery_id(database: Database, receiver: Receiver, key: str) -> str:
    """A delivery that is due."""
    with database.write() as session:
        project = session.scalars(select(Project.id)).first()
        endpoint = WebhookEndpoint(
            project_id=project, name="n", url=receiver.url, event_types={"types": ALL}, secret=SECRET
        )
        session.add(endpoint)
        session.flush()
        body = webhooks.event_body("evt_1", "eval.run.failed", "evalrun_1", 0)
        row = WebhookDelivery(
            endpoint_id=endpoint.id,
            event_id="evt_1",
            event_type="eval.run.failed",
            body=body,
            tries_left=MAX_TRIES,
            next_try_at=webhooks.clock(session),
        )
        session.add(row)
        session.flush()
        return row.id


def row(database: Database, delivery_id: str) -> WebhookDelivery:
    with database.read() as session:
        return session.get_one(WebhookDelivery, delivery_id)


def make_due(database: Database) -> None:
    """Let the pause, whatever its length, be over."""
    with database.write() as session:
        waiting = WebhookDelivery.next_try_at.is_not(None)
        session.execute(update(WebhookDelivery).where(waiting).values(next_try_at=db_now()))


def pause(database: Database, delivery_id: str) -> float:
    """Seconds until the next try."""
    with database.read() as session:
        query = select(WebhookDelivery.next_try_at - db_now()).where(WebhookDelivery.id == delivery_id)
        return session.scalars(query).one()


def test_the_eight_tries_span_about_a_day():
    assert len(PAUSES) == 7
    assert 23 * 3600 < sum(PAUSES) < 24 * 3600


def test_a_failing_receiver_is_tried_eight_times_with_growing_pauses_and_then_given_up(
    sender: WebhookSender, database: Database, receiver: Receiver, delivery_id: str
):
    receiver.statuses = [500, 404, 302]
    for expected in PAUSES:
        sender.deliver()
        assert row(database, delivery_id).status == "pending"
        assert expected - 5 <= pause(database, delivery_id) <= expected * 1.1
        sender.deliver()  # not due: nothing is sent
        make_due(database)
    sender.deliver()
    ended = row(database, delivery_id)
    assert (ended.status, ended.next_try_at, len(receiver.requests)) == ("failed", None, 8)
    assert [entry["status_code"] for entry in ended.log["tries"]] == [500, 404, *[302] * 6]
    assert set(receiver.paths) == {"/hook"}  # redirects are not followed


def test_each_try_is_signed_at_its_own_moment(
    sender: WebhookSender, database: Database, receiver: Receiver, delivery_id: str
):
    receiver.statuses = [503, 200]
    sender.deliver()
    make_due(database)
    time.sleep(1.1 - time.time() % 1)  # into another second
    sender.deliver()
    assert row(database, delivery_id).status == "delivered"
    (first, _), (second, body) = receiver.requests
    assert int(second["webhook-timestamp"]) > int(first["webhook-timestamp"])
    assert first["webhook-signature"] != second["webhook-signature"]
    assert second["host"] == receiver.url.split("/")[2]
    with OpenAI(api_key="any") as client:
        assert client.webhooks.unwrap(body, second, secret=SECRET).data.id == "evalrun_1"


def test_two_senders_send_once(settings: Settings, database: Database, receiver: Receiver, delivery_id: str):
    receiver.open.clear()
    first = threading.Thread(target=WebhookSender(database, settings).deliver)
    first.start()
    wait_for(lambda: receiver.requests)
    WebhookSender(database, settings).deliver()
    receiver.open.set()
    first.join()
    assert len(receiver.requests) == 1
    assert row(database, delivery_id).status == "delivered"


def test_a_try_whose_process_died_is_made_again_and_what_it_tells_late_is_ignored(
    sender: WebhookSender, database: Database, delivery_id: str
):
    with database.write() as session:
        [lost] = webhooks.take_due(session, 10)
    sender.deliver()
    assert row(database, delivery_id).log == {"tries": []}  # its minute is not over
    make_due(database)
    sender.deliver()
    with database.write() as session:
        webhooks.settle(session, lost, webhooks.Outcome(0, 0, error="late"))
    done = row(database, delivery_id)
    assert (done.status, len(done.log["tries"])) == ("delivered", 1)


def test_a_last_try_that_was_lost_is_given_up(sender: WebhookSender, database: Database, receiver, delivery_id: str):
    with database.write() as session:
        session.execute(update(WebhookDelivery).values(tries_left=0))
    sender.deliver()
    assert row(database, delivery_id).status == "failed"
    assert receiver.requests == []


def test_a_target_inside_is_refused_at_the_moment_of_connecting(
    settings: Settings, database: Database, receiver: Receiver, delivery_id: str
):
    WebhookSender(database, settings.model_copy(update={"webhook_private_targets": False})).deliver()
    [entry] = row(database, delivery_id).log["tries"]
    assert entry["status_code"] is None
    assert "not public" in entry["error"]
    assert receiver.requests == []


def outgoing(url: str) -> Outgoing:
    return Outgoing("whd_1", 1, url, (SECRET,), "evt_1", "{}")


def test_a_slow_receiver_costs_the_others_nothing_and_ends_at_the_deadline(receiver: Receiver, monkeypatch):
    monkeypatch.setattr(api.webhook_sender, "_DEADLINE_SECONDS", 1)
    receiver.open.clear()
    with receiving() as quick:
        began = time.monotonic()
        slow, fast = send([outgoing(receiver.url), outgoing(quick.url)], private_allowed=True)
    assert time.monotonic() - began < 5
    assert slow.error == "no answer within 1 s"
    assert (fast.status_code, fast.seconds < 1) == (204, True)


@pytest.mark.parametrize(
    "url", ["https://nowhere.invalid/x", "http://127.0.0.1:1/x", "http://[::1]:1/x", "https://" + "a" * 70 + "/"]
)
def test_whatever_the_url_leads_to_is_an_outcome_and_no_exception(url: str):
    [outcome] = send([outgoing(url)], private_allowed=True)
    assert outcome.status_code is None
    assert outcome.error


def test_a_receiver_that_hangs_never_delays_a_hint(
    settings: Settings, key: str, valkey_url: str, receiver: Receiver, database: Database
):
    with redis.Redis.from_url(valkey_url) as broker:
        broker.flushall()
    receiver.open.clear()
    patient = settings.model_copy(update={"redis_url": valkey_url})
    with TestClient(create_app(patient), headers={"Authorization": f"Bearer {key}"}) as http:
        http.post("/v1/webhook_endpoints", json={"name": "n", "url": receiver.url, "event_types": ALL})
        http.post(f"/v1/fine_tuning/jobs/{submit(http)['id']}/cancel")
        wait_for(lambda: receiver.requests)  # it hangs from here on
        began = time.monotonic()
        second = submit(http)["id"]
        wait_for(lambda: f"['{second}']" in hints(valkey_url))
        assert time.monotonic() - began < 2
        receiver.open.set()


def test_old_deliveries_are_forgotten_unless_they_wait(sender: WebhookSender, database: Database, delivery_id: str):
    with database.write() as session:
        session.execute(update(WebhookDelivery).values(created_at=db_now() - 31 * 86_400))
        webhooks.sweep(session)
        assert session.scalar(select(func.count()).select_from(WebhookDelivery)) == 1
    sender.deliver()
    with database.write() as session:
        webhooks.sweep(session)
        assert session.scalar(select(func.count()).select_from(WebhookDelivery)) == 0
