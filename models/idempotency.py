"""Answers kept by ``Idempotency-Key``, so that a request that is sent twice is carried out once (docs/decisions/0013).

A key's row is written in the transaction that carries the request out: what was made and the key that made it appear
together or not at all, whatever dies in between.
"""

from dataclasses import dataclass

from sqlalchemy import delete, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from core.errors import InvalidRequestError
from models.base import db_now
from models.tables import IdempotencyKey

#: Kept for at least this long; swept once an hour.
KEEP_SECONDS = 86_400


@dataclass(frozen=True)
class Keyed:
    """A request that came with a key. ``fingerprint`` is the SHA-256 of its method, path and body."""

    project_id: str
    key: str
    fingerprint: str


@dataclass(frozen=True)
class KeptAnswer:
    """The answer that the key's first request got: HTTP status and JSON body."""

    status: int
    body: str


def find(session: Session, keyed: Keyed) -> KeptAnswer | None:
    """The answer kept for a key. Raises InvalidRequestError when its first request was another one."""
    row = session.get(IdempotencyKey, (keyed.project_id, keyed.key), populate_existing=True)
    if row is None:
        return None
    if row.fingerprint != keyed.fingerprint:
        raise InvalidRequestError(
            f"The Idempotency-Key '{keyed.key:.80}' was used for another request. Send the same method, URL and body "
            "as at first, or a new key.",
            param="Idempotency-Key",
            code="idempotency_key_reused",
        )
    return KeptAnswer(row.status, row.body)


def begin(session: Session, keyed: Keyed) -> KeptAnswer | None:
    """Take the key for this transaction (None), or the answer of the request that had it.

    While another transaction has the key, this waits for its end: PostgreSQL on the index, SQLite on the write lock.
    Raises InvalidRequestError when the key's first request was another one.
    """
    insert = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    row = {"project_id": keyed.project_id, "key": keyed.key, "fingerprint": keyed.fingerprint, "status": 0, "body": ""}
    taken = insert(IdempotencyKey).values(row).on_conflict_do_nothing().returning(IdempotencyKey.key)
    return None if session.scalar(taken) else find(session, keyed)


def keep(session: Session, keyed: Keyed, answer: KeptAnswer) -> None:
    """Store the answer in the transaction that took the key."""
    mine = (IdempotencyKey.project_id == keyed.project_id, IdempotencyKey.key == keyed.key)
    values = {"status": answer.status, "body": answer.body}
    session.execute(update(IdempotencyKey).where(*mine).values(values).execution_options(synchronize_session=False))


def sweep(session: Session) -> None:
    """Forget keys older than a day."""
    session.execute(delete(IdempotencyKey).where(IdempotencyKey.created_at < db_now() - KEEP_SECONDS))
