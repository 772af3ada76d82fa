"""A job's stream: everything once, in order, and from where a reader left off."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.to_thread
import httpx2
import pytest
from starlette.testclient import TestClient

from api.job_stream import Told, read_told, stream
from api.main import create_app
from core.errors import InvalidRequestError
from core.settings import Settings
from core.storage import Storage
from models import lifecycle
from models.database import Database
from models.lifecycle import Claim
from tests.api.conftest import served
from tests.api.driving import claim, error_of, submit, train


@dataclass(frozen=True)
class Message:
    name: str
    id: str
    data: dict[str, Any]


@dataclass(frozen=True)
class Act:
    """Something that happens to a job once what it waits for was told."""

    when: Callable[[list[Message]], bool]
    work: Callable[[], None]


def messages(lines: Iterator[str]) -> Iterator[Message]:
    """The messages of an event stream, by the rules of the HTML Standard."""
    fields: dict[str, str] = {}
    for line in lines:
        if line and not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "data" in fields:
            yield Message(fields["event"], fields["id"], json.loads(fields["data"]))
            fields = {}


def read(http: TestClient, job_id: str, last: str | None = None) -> list[Message]:
    """A stream to its end."""
    headers = {"Last-Event-ID": last} if last else {}
    with http.stream("GET", f"/v1/fine_tuning/jobs/{job_id}/events/stream", headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        return list(messages(answer.iter_lines()))


def test_a_job_that_has_ended_is_told_whole(http: TestClient, database: Database, storage: Storage):
    job_id = submit(http)["id"]
    train(database, storage)
    told = read(http, job_id)
    assert told[0].name == "job"
    assert told[0].data["status"] == "succeeded"
    events = [message.data["id"] for message in told if message.name == "event"]
    listed = http.get(f"/v1/fine_tuning/jobs/{job_id}/events", params={"limit": 100}).json()["data"]
    assert events == [event["id"] for event in reversed(listed)]
    assert [message.data["step"] for message in told if message.name == "step"] == [1, 2]
    assert told[-1].name == "end"


def test_from_any_message_on_the_rest_comes_and_nothing_else(http: TestClient, database: Database, storage: Storage):
    job_id = submit(http)["id"]
    train(database, storage)
    whole = read(http, job_id)
    for place, message in enumerate(whole[:-1]):
        rest = read(http, job_id, last=message.id)
        expected = [later.data for later in whole[place + 1 :] if later.name == "event"]
        assert [later.data for later in rest if later.name == "event"] == expected
        # The last step that was told is told again: its validation may have come since.
        known = [earlier.data for earlier in whole[: place + 1] if earlier.name == "step"]
        steps = [later.data for later in whole if later.name == "step"]
        assert [later.data for later in rest if later.name == "step"] == steps[max(0, len(known) - 1) :]
        assert rest[-1].name == "end"


def collect(
    database: Database, job_id: str, told: Told, until: Callable[[list[Message]], bool], *acts: Act
) -> list[Message]:
    """Read a stream until something was told; each act is done once what it waits for was told."""
    stopping = threading.Event()
    text: list[str] = []
    waiting = list(acts)

    async def follow() -> None:
        with anyio.fail_after(30):
            async for chunk in stream(database, job_id, told, stopping):
                text.append(chunk.decode())
                known = list(messages(iter("".join(text).splitlines())))
                while waiting and waiting[0].when(known):
                    await anyio.to_thread.run_sync(waiting.pop(0).work)
                if not waiting and until(known):
                    stopping.set()

    anyio.run(follow)
    return list(messages(iter("".join(text).splitlines())))


def count(name: str, number: int) -> Callable[[list[Message]], bool]:
    """Whether so many messages of a name were told."""
    return lambda known: sum(message.name == name for message in known) >= number


def test_it_tells_what_happens_while_it_is_read(http: TestClient, database: Database):
    job_id = submit(http)["id"]
    taken: list[Claim] = []

    def train_a_step() -> None:
        taken.append(claim(database))
        with database.write() as session:
            lifecycle.record_step(session, taken[0], 1, {"train_loss": 2.0}, total_steps=9)

    def validate() -> None:
        with database.write() as session:
            lifecycle.record_step(session, taken[0], 1, {"valid_loss": 1.5}, total_steps=9)

    acts = (Act(count("event", 2), train_a_step), Act(count("step", 1), validate))
    told = collect(database, job_id, Told(), count("step", 2), *acts)
    states = [message.data for message in told if message.name == "job"]
    assert (states[0]["status"], states[0]["place"]) == ("queued", 1)
    assert (states[-1]["status"], states[-1]["step"], states[-1]["total_steps"]) == ("running", 1, 9)
    steps = [message.data for message in told if message.name == "step"]
    assert [(step["train_loss"], step["valid_loss"]) for step in steps] == [(2.0, None), (2.0, 1.5)]


def test_another_attempt_that_begins_earlier_is_told(http: TestClient, database: Database):
    job_id = submit(http)["id"]
    first = claim(database)
    with database.write() as session:
        for step in (1, 2, 3):
            lifecycle.record_step(session, first, step, {"train_loss": 2.0}, total_steps=9)

    def again() -> None:
        with database.write() as session:
            lifecycle.hand_back(session, first, "its process crashed", count_attempt=True, max_attempts=3)
        second = claim(database)
        with database.write() as session:
            lifecycle.rewind(session, second, 1)
            lifecycle.record_step(session, second, 2, {"train_loss": 1.0}, total_steps=9)

    told = collect(database, job_id, Told(), count("step", 4), Act(count("step", 3), again))
    names = [message.name for message in told if message.name in ("step", "reset")]
    assert names == ["step", "step", "step", "reset", "step"]
    assert (told[-1].data["step"], told[-1].data["train_loss"]) == (2, 1.0)
    # A reader that was away meanwhile is told as well.
    before = next(message.id for message in told if message.name == "step" and message.data["step"] == 3)
    assert "reset" in [message.name for message in collect(database, job_id, read_told(before), count("reset", 1))]


def test_a_server_that_stops_does_not_wait_for_readers(settings: Settings, http: TestClient, key: str):
    job_id = submit(http)["id"]
    app = create_app(settings)
    headers = {"Authorization": f"Bearer {key}"}
    with served(app) as url:
        path = f"{url}/v1/fine_tuning/jobs/{job_id}/events/stream"
        with httpx2.Client(headers=headers) as client, client.stream("GET", path) as answer:
            told = messages(answer.iter_lines())
            assert [next(told).name for _ in range(3)] == ["job", "event", "event"]
            app.state.stopping.set()
            assert list(told) == []


@pytest.mark.parametrize("last", ["x", "ftevent-1.2", "a.1.-5", "ftevent-é.1.2", "a" * 80 + ".1.2"])
def test_an_id_that_is_none_is_refused(http: TestClient, last: str):
    job_id = submit(http)["id"]
    answer = http.get(f"/v1/fine_tuning/jobs/{job_id}/events/stream", params={"after": last})
    assert (answer.status_code, error_of(answer)["code"]) == (400, "invalid_cursor")
    with pytest.raises(InvalidRequestError):
        read_told(last)


def test_an_id_says_what_was_told():
    for told in (Told("ftevent-01", 3, 12), Told("", 0, None), Told("ftevent-01", 1, 0)):
        assert read_told(str(told)) == told


def test_a_stream_needs_a_key_and_its_own_project(http: TestClient, other_key: str):
    job_id = submit(http)["id"]
    path = f"/v1/fine_tuning/jobs/{job_id}/events/stream"
    assert http.get(path, headers={"Authorization": ""}).status_code == 401
    assert http.get(path, headers={"Authorization": f"Bearer {other_key}"}).status_code == 404
