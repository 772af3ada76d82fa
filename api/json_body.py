"""JSON in and out: bodies that can be stored (no NaN, NUL, half characters or abysses), answers in one thread."""

import json
import math
from collections.abc import Callable, Coroutine
from functools import wraps
from inspect import iscoroutinefunction
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel

from api.media_types import require_json
from api.once import ONCE, as_json, carry_out_once

#: No request of ours nests deeper than 12; Python's own limit is about 1,000 and would be met at random places.
MAX_DEPTH = 64
MAX_INTEGER = 2**63 - 1


class StrictJsonRequest(Request):
    """A request whose ``json()`` raises JSONDecodeError for what neither database could store."""

    async def json(self) -> Any:
        """The body's value."""
        body = await self.body()
        try:
            text = body.decode("utf-8")
        except UnicodeDecodeError as error:
            raise json.JSONDecodeError("it is not UTF-8", "", error.start) from None
        return parse(text)


def parse(text: str) -> Any:
    """Parse JSON. Raises JSONDecodeError, also for what Python's parser would let through."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError:
        raise
    except (RecursionError, ValueError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise json.JSONDecodeError(reason, "", 0) from None
    if unfit := _unstorable(value):
        raise json.JSONDecodeError(unfit, "", 0)
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _unstorable(root: Any) -> str | None:
    """Why a value can't be stored, or None. Walks without recursion."""
    stack: list[tuple[Any, int]] = [(root, 0)]
    while stack:
        value, depth = stack.pop()
        if depth > MAX_DEPTH:
            return f"it is nested more than {MAX_DEPTH} levels deep"
        if isinstance(value, dict):
            stack += [(inner, depth + 1) for pair in value.items() for inner in pair]
        elif isinstance(value, list):
            stack += [(inner, depth + 1) for inner in value]
        elif reason := _unstorable_scalar(value):
            return reason
    return None


def _unstorable_scalar(value: Any) -> str | None:
    if isinstance(value, str):
        if "\0" in value:
            return "a text contains the character NUL; remove \\u0000"
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            return "a text contains half of a surrogate pair; write the whole character"
    elif isinstance(value, float) and not math.isfinite(value):
        return "a number is too large for 64 bits"
    elif isinstance(value, int) and abs(value) > MAX_INTEGER:
        return "an integer is too large for 64 bits"
    return None


def _answers_json(endpoint: Callable[..., Any], status_code: int | None) -> Callable[..., Any]:
    """The endpoint, its model written as JSON in the thread that made it.

    FastAPI would take a second thread for that, while the endpoint's session holds a connection or SQLite's write lock;
    with all 40 threads waiting for just these, nobody would go on until a timeout.
    """

    @wraps(endpoint)
    def answer(*args: Any, **kwargs: Any) -> Any:
        status, session = status_code or 200, kwargs.get("session")
        try:
            made = carry_out_once(session, lambda: endpoint(*args, **kwargs), status)
            if not isinstance(made, BaseModel):
                return made
            return Response(as_json(made), status_code=status, media_type="application/json")
        finally:
            if session is not None and ONCE not in session.info:
                session.close()  # one that only reads; a write's commit follows

    return answer


class StrictJsonRoute(APIRoute):
    """A route whose bodies are read by ``StrictJsonRequest`` and whose answers need no second thread."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        if not iscoroutinefunction(endpoint):
            endpoint = _answers_json(endpoint, options.get("status_code"))
        super().__init__(path, endpoint, **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, given a strict request."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            if self.body_field is not None:
                require_json(request)
            return await handler(StrictJsonRequest(request.scope, request.receive))

        return handle
