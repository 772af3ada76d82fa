"""Around every request: its id, its line in the log, the answer to faults of ours, and the limits of its body."""

import re
import time
from typing import Any

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import error_response, unexpected_error
from core.ids import new_id
from core.logging import get_logger

log = get_logger("api.access")

#: What a multipart body may have beyond its file: boundaries, headers, the other fields.
MULTIPART_OVERHEAD = 64 * 1024
#: Logged when the client went away before the answer (nginx's word for it).
CLIENT_CLOSED_REQUEST = 499
#: OpenAI's limit of one part of an upload; its client cuts there.
MAX_PART_BYTES = 64 * 2**20
_PART = re.compile(r"/v1/uploads/[^/]+/parts")


class RequestLog:
    """Gives the request an id, answers exceptions that nobody else did, and writes one line when it is over."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = new_id("req_")
        status = 0
        began = time.perf_counter()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self.app(scope, receive, send_with_id)
            except ClientDisconnect:
                status = CLIENT_CLOSED_REQUEST
            except Exception:
                log.exception("unexpected_error", method=scope["method"], path=scope["path"])
                if status:  # the answer has begun: only a broken connection can tell the client
                    raise
                await unexpected_error(request_id)(scope, receive, send_with_id)
            finally:
                _access_line(scope, status, time.perf_counter() - began)


def _access_line(scope: Scope, status: int, seconds: float) -> None:
    write = log.debug if scope["path"] in ("/healthz", "/readyz") else log.info
    write("request", method=scope["method"], path=scope["path"], status=status, milliseconds=round(seconds * 1000, 1))


class BodyLimit:
    """Refuses a body over its limit, by its Content-Length at once and by its bytes as they come."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int, max_file_bytes: int) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes
        self.max_upload_bytes = max_file_bytes + MULTIPART_OVERHEAD
        self.max_part_bytes = min(max_file_bytes, MAX_PART_BYTES) + MULTIPART_OVERHEAD

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = self._limit(scope)
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isascii() and declared.isdigit() and int(declared[:20]) > limit:
            await error_response(413, _too_large(limit), code="body_too_large")(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                # Starlette's own class passes through FastAPI's reading of a body; any other would become a 400.
                raise HTTPException(413, _too_large(limit))
            return message

        await self.app(scope, counted, send)

    def _limit(self, scope: Scope) -> int:
        if scope["method"] == "POST" and _PART.fullmatch(scope["path"]):
            return self.max_part_bytes
        upload = scope["method"] == "POST" and scope["path"] in ("/v1/files", "/files")  # the API's, the dashboard's
        return self.max_upload_bytes if upload else self.max_body_bytes


def _too_large(limit: int) -> str:
    return f"The body is larger than {limit:,} bytes, which is this server's limit. Send less, or upload a file."


class RefuseNul:
    """Refuses NUL in a URL: no id or filter has one, and PostgreSQL can't compare with it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        query: Any = scope.get("query_string", b"")
        if scope["type"] == "http" and ("\0" in scope["path"] or b"%00" in query or b"\0" in query):
            refusal = error_response(400, "The URL contains the character NUL. Remove %00.", code="invalid_url")
            await refusal(scope, receive, send)
            return
        await self.app(scope, receive, send)
