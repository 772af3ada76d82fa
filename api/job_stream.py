"""A job as it happens: server-sent events that go on where a reader left off, after a lost connection or a restart.

Nothing of a stream is kept in the process: each message's id says what has been told (the last event, the worker's
epoch, the last step), and a reader that comes back with it in ``Last-Event-ID`` gets what has happened since.
"""

import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from threading import Event as Flag

import anyio
from anyio.to_thread import run_sync
from pydantic import BaseModel
from sqlalchemy import func, select
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.orm import Session

from api.job_schemas import job_event, step_object
from core.errors import InvalidRequestError, NotFoundError
from models import waiting_line
from models.database import Database
from models.status import ENDED
from models.tables import Job, JobEvent, StepMetric

#: Seconds between two looks at the database; a look at a job where nothing happens is three short queries.
LOOK_SECONDS = 0.7
#: A comment every so many quiet looks: proxies close connections on which nothing is sent for a minute.
_QUIET_LOOKS = 20
#: Steps and events that one look tells of; the next look tells of more.
_BATCH = 500
_ID = re.compile(r"(?P<event>[a-z0-9-]{0,64})\.(?P<epoch>\d{1,9})\.(?P<step>-|\d{1,9})")

HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


@dataclass(frozen=True)
class Told:
    """What a reader knows: the last event, the epoch, and the last step with its figures, for the last may grow."""

    event: str = ""
    epoch: int = 0
    step: int | None = None
    state: str = ""
    figures: str = ""

    def __str__(self) -> str:
        """The id of a message."""
        return f"{self.event}.{self.epoch}.{'-' if self.step is None else self.step}"


def read_told(text: str | None) -> Told:
    """What the id of a message says. Raises InvalidRequestError for what is none."""
    if not text:
        return Told()
    found = _ID.fullmatch(text)
    if found is None:
        raise InvalidRequestError(
            f"'{text:.80}' is no id of a message of this stream. Leave Last-Event-ID out to read from the start.",
            param="Last-Event-ID",
            code="invalid_cursor",
        )
    step = None if found["step"] == "-" else int(found["step"])
    return Told(found["event"], int(found["epoch"]), step)


def position(session: Session, job: Job) -> Told:
    """What a reader knows who has just read all that there is."""
    event = session.scalar(select(func.max(JobEvent.id)).where(JobEvent.job_id == job.id))
    step = session.scalar(select(func.max(StepMetric.step)).where(StepMetric.job_id == job.id))
    return Told(event or "", job.lease_epoch, step)


class JobState(BaseModel):
    """Where a job is; ``place`` is its place in the queue, ``estimated_finish`` in seconds since 1970."""

    status: str
    step: int
    total_steps: int | None
    attempt: int
    place: int | None
    estimated_finish: float | None


def job_state(session: Session, job: Job) -> JobState:
    """Where a job is."""
    return JobState(
        status=job.status,
        step=job.step,
        total_steps=job.total_steps,
        attempt=job.attempt,
        place=waiting_line.places(session, [job.id]).get(job.id) if job.status == "queued" else None,
        estimated_finish=job.estimated_finish if job.status == "running" else None,
    )


def message(name: str, told: Told, data: str) -> bytes:
    """One message of an event stream (HTML Standard, section 9.2)."""
    return f"id: {told}\nevent: {name}\ndata: {data}\n\n".encode()


def look(session: Session, job: Job, told: Told) -> Iterator[tuple[Told, bytes]]:
    """What has happened since ``told``, message by message; ``end`` is the last one."""
    state = job_state(session, job).model_dump_json()
    if state != told.state:
        told = replace(told, state=state)
        yield told, message("job", told, state)
    newer = select(JobEvent).where(JobEvent.job_id == job.id, JobEvent.id > told.event)
    events = session.scalars(newer.order_by(JobEvent.id).limit(_BATCH)).all()
    for event in events:
        told = replace(told, event=event.id)
        yield told, message("event", told, job_event(event).model_dump_json())
    steps = 0
    for told, step_message in _steps(session, job, told):  # noqa: B020 - it goes on from the same
        steps += 1
        yield told, step_message
    if job.status in ENDED and len(events) < _BATCH and steps < _BATCH:
        yield told, message("end", told, state)


def _steps(session: Session, job: Job, told: Told) -> Iterator[tuple[Told, bytes]]:
    last = session.scalar(select(func.max(StepMetric.step)).where(StepMetric.job_id == job.id))
    rewound = told.step is not None and (last is None or last < told.step)
    if told.step is not None and (rewound or told.epoch != job.lease_epoch):
        # Another attempt may have written other figures over those that were told: the reader has to read them again.
        told = replace(told, step=last, epoch=job.lease_epoch, figures="")
        yield told, message("reset", told, "{}")
        return
    told = replace(told, epoch=job.lease_epoch)
    # From the last step on, not behind it: its validation comes after its training.
    rows = select(StepMetric).where(StepMetric.job_id == job.id, StepMetric.step >= (told.step or 0))
    for row in session.scalars(rows.order_by(StepMetric.step).limit(_BATCH)):
        figures = step_object(row).model_dump_json()
        if figures != told.figures:
            told = replace(told, step=row.step, figures=figures)
            yield told, message("step", told, figures)


async def stream(database: Database, job_id: str, told: Told, stopping: Flag) -> AsyncIterator[bytes]:
    """Messages until the job has ended, the reader has gone, or the server stops.

    A database that is away is waited for: the reader keeps its connection.
    """

    def look_from(told: Told) -> list[tuple[Told, bytes]]:
        with database.read() as session:
            job = session.get(Job, job_id)
            if job is None:  # deleted meanwhile
                raise NotFoundError(f"No job {job_id!r:.80} exists in this project.", code="not_found")
            return list(look(session, job, told))

    yield b"retry: 2000\n\n"
    quiet = 0
    while not stopping.is_set():
        try:
            found = await run_sync(look_from, told)
        except (OperationalError, InterfaceError):
            found = []
        except NotFoundError:
            return
        quiet = 0 if found else quiet + 1
        for _, text in found:
            yield text
        if found:
            told = found[-1][0]
            if found[-1][1].split(b"\n", 2)[1] == b"event: end":
                return
        if quiet % _QUIET_LOOKS == _QUIET_LOOKS - 1:
            yield b": still here\n\n"
        if len(found) < _BATCH:
            await _sleep(stopping)


async def _sleep(stopping: Flag) -> None:
    """Until the next look; a server that stops does not wait for it."""
    for _ in range(7):
        if stopping.is_set():
            return
        await anyio.sleep(LOOK_SECONDS / 7)
