"""Webhooks' rows: an event for each endpoint that asked for it, the tries to deliver it, and what came of them."""

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from core.ids import new_id
from models.base import db_now
from models.database import OUTBOX_WRITTEN
from models.status import JobKind, JobStatus
from models.tables import Job, WebhookDelivery, WebhookEndpoint

#: OpenAI's names; evals have one "l" less in "canceled".
EVENT_TYPES: dict[tuple[JobKind, JobStatus], str] = {
    (JobKind.FINE_TUNE, JobStatus.SUCCEEDED): "fine_tuning.job.succeeded",
    (JobKind.FINE_TUNE, JobStatus.FAILED): "fine_tuning.job.failed",
    (JobKind.FINE_TUNE, JobStatus.CANCELLED): "fine_tuning.job.cancelled",
    (JobKind.EVALUATION, JobStatus.SUCCEEDED): "eval.run.succeeded",
    (JobKind.EVALUATION, JobStatus.FAILED): "eval.run.failed",
    (JobKind.EVALUATION, JobStatus.CANCELLED): "eval.run.canceled",
}

#: Seconds between one try and the next: eight tries in 23 hours and 36 minutes.
PAUSES = (5, 30, 300, 1_800, 7_200, 18_000, 57_600)
MAX_TRIES = len(PAUSES) + 1
#: A try that has told nothing for so long is lost with its process; a living one ends after 10 s.
_LEASE_SECONDS = 60
#: Tries that a delivery's log keeps: eight, and those of replays.
_LOG_LENGTH = 32
_KEEP_SECONDS = 30 * 86_400


@dataclass(frozen=True)
class Outgoing:
    """One try to deliver: everything that a sender needs, without a session."""

    delivery_id: str
    number: int
    url: str
    secrets: tuple[str, ...]
    event_id: str
    body: str


@dataclass(frozen=True)
class Outcome:
    """What came of a try: the receiver's status, or why there is none."""

    at: float
    seconds: float
    status_code: int | None = None
    error: str | None = None

    @property
    def delivered(self) -> bool:
        """Whether the receiver took the event."""
        return self.status_code is not None and 200 <= self.status_code < 300


def event_body(event_id: str, event_type: str, subject_id: str, created_at: float) -> str:
    """An event as OpenAI writes it."""
    body = {"id": event_id, "object": "event", "created_at": int(created_at), "type": event_type}
    return json.dumps({**body, "data": {"id": subject_id}}, separators=(",", ":"))


def announce(session: Session, job_id: str, status: JobStatus) -> None:
    """Write the event that a job has ended, once for each endpoint of its project that asked for it."""
    job = session.get_one(Job, job_id)
    event_type = EVENT_TYPES[JobKind(job.kind), status]
    # Locked: an endpoint that is deleted at this moment must not make the end of a job fail.
    query = select(WebhookEndpoint).where(WebhookEndpoint.project_id == job.project_id).order_by(WebhookEndpoint.id)
    endpoints = session.scalars(query.with_for_update(read=True, key_share=True)).all()
    asked = [endpoint.id for endpoint in endpoints if event_type in endpoint.event_types["types"]]
    if not asked:
        return
    event_id, now = new_id("evt_"), clock(session)
    body = event_body(event_id, event_type, job_id, now)
    session.add_all(_delivery(endpoint_id, event_id, event_type, body, now) for endpoint_id in asked)
    session.info[OUTBOX_WRITTEN] = True


def _delivery(endpoint_id: str, event_id: str, event_type: str, body: str, now: float) -> WebhookDelivery:
    return WebhookDelivery(
        endpoint_id=endpoint_id,
        event_id=event_id,
        event_type=event_type,
        body=body,
        tries_left=MAX_TRIES,
        next_try_at=now,
    )


def clock(session: Session) -> float:
    """The database's time."""
    return session.scalars(select(db_now())).one()


def take_due(session: Session, limit: int) -> list[Outgoing]:
    """Take what is due, first tries before later ones. Another sender takes it again only when this one is lost."""
    now = clock(session)
    query = (
        select(WebhookDelivery, WebhookEndpoint)
        .join(WebhookEndpoint, WebhookEndpoint.id == WebhookDelivery.endpoint_id)
        .where(WebhookDelivery.next_try_at <= now)
        .order_by(WebhookDelivery.tries, WebhookDelivery.next_try_at)
        .limit(limit)
        .with_for_update(of=WebhookDelivery, skip_locked=True)
    )
    taken = []
    for delivery, endpoint in session.execute(query).all():
        if delivery.tries_left == 0:  # its last try was lost with its sender
            delivery.status, delivery.next_try_at = "failed", None
            continue
        delivery.tries += 1
        delivery.tries_left -= 1
        delivery.next_try_at = now + _LEASE_SECONDS
        taken.append(_outgoing(delivery, endpoint, now))
    return taken


def _outgoing(delivery: WebhookDelivery, endpoint: WebhookEndpoint, now: float) -> Outgoing:
    return Outgoing(
        delivery.id, delivery.tries, endpoint.url, secrets_of(endpoint, now), delivery.event_id, delivery.body
    )


def secrets_of(endpoint: WebhookEndpoint, now: float) -> tuple[str, ...]:
    """The secrets that sign at the moment."""
    old, until = endpoint.old_secret, endpoint.old_secret_expires_at
    return (endpoint.secret, old) if old is not None and until is not None and until > now else (endpoint.secret,)


def settle(session: Session, tried: Outgoing, outcome: Outcome) -> None:
    """Store what came of a try, and when the next one is due; nothing if another try has begun since."""
    delivery = session.get(WebhookDelivery, tried.delivery_id, with_for_update=True)
    if delivery is None or delivery.tries != tried.number:
        return
    entry = {**asdict(outcome), "at": round(outcome.at, 3), "seconds": round(outcome.seconds, 3)}
    delivery.log = {"tries": [*delivery.log["tries"], entry][-_LOG_LENGTH:]}
    if outcome.delivered:
        delivery.status, delivery.next_try_at = "delivered", None
    elif delivery.tries_left == 0:
        delivery.status, delivery.next_try_at = "failed", None
    else:
        # Up to a tenth more, so that what failed together does not come back together.
        pause = PAUSES[MAX_TRIES - delivery.tries_left - 1] * random.uniform(1, 1.1)
        delivery.next_try_at = clock(session) + pause


def replay(session: Session, delivery: WebhookDelivery) -> None:
    """Deliver once more, now, with as many tries as at first; the event's id stays, so receivers can tell."""
    delivery.status = "pending"
    delivery.tries_left = MAX_TRIES
    delivery.next_try_at = clock(session)
    session.info[OUTBOX_WRITTEN] = True


def sweep(session: Session) -> None:
    """Forget deliveries that ended and are older than 30 days."""
    old = WebhookDelivery.created_at < db_now() - _KEEP_SECONDS
    session.execute(delete(WebhookDelivery).where(old, WebhookDelivery.next_try_at.is_(None)))


def types_of(endpoint: WebhookEndpoint) -> Sequence[str]:
    """The events that an endpoint asked for."""
    types: list[str] = endpoint.event_types["types"]
    return types
