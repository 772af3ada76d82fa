"""``Idempotency-Key``: a POST that is sent again is answered as the first time, and carried out once.

Only what was carried out is kept: a refusal, or a database that was away, has made nothing, and trying again is right.
"""

import hashlib
import json
from collections.abc import Callable

from fastapi import Request, Response
from pydantic import BaseModel
from sqlalchemy.orm import Session

from core.errors import InvalidRequestError
from models import idempotency
from models.database import Database
from models.idempotency import KeptAnswer, Keyed

HEADER = "Idempotency-Key"
#: In the answer to a request that was not carried out again, as at Stripe.
REPLAYED = {"Idempotent-Replayed": "true"}
_MAX_LENGTH = 255
#: ``session.info`` key of a write session's Once.
ONCE = "once"


class ReplayError(Exception):
    """Ends a request whose key has an answer already; what it began is rolled back."""

    def __init__(self, answer: KeptAnswer) -> None:
        super().__init__(answer.status)
        self.answer = answer


class Once:
    """A request's key, if it has one; every method does nothing for a request without."""

    def __init__(self, request: Request) -> None:
        self._keyed: Keyed | None = None
        self._key = request.headers.get(HEADER) if request.method == "POST" else None
        self._place = f"{request.method} {request.url.path}\n".encode()
        if self._key is not None and not (0 < len(self._key) <= _MAX_LENGTH and self._key.isascii()):
            raise InvalidRequestError(
                f"The {HEADER} must have 1 to {_MAX_LENGTH} ASCII characters, such as a UUID.",
                param=HEADER,
                code="invalid_idempotency_key",
            )

    @property
    def asked(self) -> bool:
        """Whether the request has a key."""
        return self._key is not None

    def identify(self, project_id: str, body: bytes) -> None:
        """Say whose request it is and what is in it."""
        if self._key is not None:
            self._keyed = Keyed(project_id, self._key, hashlib.sha256(self._place + body).hexdigest())

    def look(self, database: Database) -> None:
        """Before costly work: raise ReplayError when the answer is there."""
        if self._keyed is not None:
            with database.read() as session:
                _replay(idempotency.find(session, self._keyed))

    def begin(self, session: Session) -> None:
        """Take the key for the session's transaction. Raises ReplayError when the answer is there."""
        if self._keyed is not None:
            _replay(idempotency.begin(session, self._keyed))

    def keep(self, session: Session, made: BaseModel, status: int = 200) -> None:
        """Keep the answer, in the transaction that took the key."""
        if self._keyed is not None:
            idempotency.keep(session, self._keyed, KeptAnswer(status, as_json(made)))


def _replay(answer: KeptAnswer | None) -> None:
    if answer is not None:
        raise ReplayError(answer)


def as_json(made: BaseModel) -> str:
    """A model as it is answered. As any: a page's items are of the class that they are, not of the page's bound."""
    return made.model_dump_json(serialize_as_any=True)


async def json_body(request: Request) -> bytes:
    """The body of a JSON request, the same whatever the order of its fields."""
    body = await request.body()
    try:
        return json.dumps(json.loads(body), sort_keys=True).encode()
    except (ValueError, RecursionError):  # none, or one that the endpoint has no use for
        return body


async def replayed(_: Request, error: Exception) -> Response:
    """Answer as the first time."""
    assert isinstance(error, ReplayError)
    answer = error.answer
    return Response(answer.body, answer.status, headers=REPLAYED, media_type="application/json")


def carry_out_once(session: Session | None, work: Callable[[], object], status: int) -> object:
    """``work`` in a write session's transaction, its answer kept under the request's key; else just ``work``."""
    once: Once | None = session.info.get(ONCE) if session is not None else None
    if session is None or once is None:
        return work()
    once.begin(session)
    made = work()
    if isinstance(made, BaseModel):
        once.keep(session, made, status)
    return made
