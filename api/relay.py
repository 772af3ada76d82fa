"""The relay: sends what the outbox holds to the broker, after the commit and at least once."""

import time
from collections.abc import Sequence

from celery import Celery
from kombu.exceptions import OperationalError
from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from api.background import Repeating
from core.broker import send_hint
from core.logging import get_logger
from models import idempotency
from models.base import db_now
from models.database import Database
from models.lifecycle import HINT
from models.tables import OutboxMessage

log = get_logger(__name__)

#: Messages in one batch: on PostgreSQL their rows are locked while they are sent, some 0.2 ms each.
_BATCH = 100
#: Sent messages are kept for a day, to look into; they are swept away once an hour.
_KEEP_SECONDS = 86_400
_SWEEP_SECONDS = 3_600
#: While the broker is away, the pause doubles up to this many polls. Workers poll the database: nothing waits for us.
_LONGEST_PAUSE = 8


class Relay:
    """Sends hints; ``wake()`` after a commit that wrote to the outbox, or it looks every ``poll_seconds``."""

    def __init__(self, database: Database, celery: Celery, poll_seconds: float) -> None:
        self._database = database
        self._celery = celery
        self._poll_seconds = poll_seconds
        self._failures = 0
        self._swept_at = float("-inf")
        self._thread = Repeating("hone-relay", self.relay, after_error=poll_seconds)
        self.start, self.wake, self.stop = self._thread.start, self._thread.wake, self._thread.stop

    def relay(self) -> float:
        """Send a batch; the seconds to wait until the next one."""
        full = self._send_batch() == _BATCH
        self._sweep()
        if self._failures:
            return self._poll_seconds * min(_LONGEST_PAUSE, 1 << min(self._failures, 8))
        return 0 if full else self._poll_seconds

    def _send_batch(self) -> int:
        """Send the oldest messages and mark those that the broker took; the number of these."""
        if self._database.is_sqlite:
            # No write transaction while we talk to the broker: it would stop every other writer.
            with self._database.read() as session:
                waiting = _unsent(session)
            sent = self._send(waiting)
            if sent:
                with self._database.write() as session:
                    _mark_sent(session, sent)
        else:
            # Locked rows are skipped by other API processes, so that each hint goes out once.
            with self._database.write() as session:
                sent = self._send(_unsent(session))
                _mark_sent(session, sent)
        return len(sent)

    def _send(self, messages: Sequence[OutboxMessage]) -> list[str]:
        """Send until the broker refuses; the ids of what it took."""
        sent: list[str] = []
        for message in messages:
            try:
                if message.kind == HINT:
                    send_hint(self._celery, message.payload["job_id"])
            except (OperationalError, OSError) as error:
                self._broker_away(error)
                return sent
            self._broker_answers()
            sent.append(message.id)
        return sent

    def _broker_away(self, error: Exception) -> None:
        self._failures += 1
        if self._failures == 1:  # once an outage, not once a try
            log.warning("broker_unavailable", error=str(error), effect="workers find jobs by polling the database")

    def _broker_answers(self) -> None:
        if self._failures:
            log.info("broker_available_again", tries=self._failures)
            self._failures = 0

    def _sweep(self) -> None:
        if time.monotonic() - self._swept_at < _SWEEP_SECONDS:
            return
        with self._database.write() as session:
            session.execute(delete(OutboxMessage).where(OutboxMessage.sent_at < db_now() - _KEEP_SECONDS))
            idempotency.sweep(session)
        self._swept_at = time.monotonic()


def _unsent(session: Session) -> Sequence[OutboxMessage]:
    query = select(OutboxMessage).where(OutboxMessage.sent_at.is_(None)).order_by(OutboxMessage.id).limit(_BATCH)
    return session.scalars(query.with_for_update(skip_locked=True)).all()


def _mark_sent(session: Session, ids: list[str]) -> None:
    session.execute(update(OutboxMessage).where(OutboxMessage.id.in_(ids)).values(sent_at=db_now()))
