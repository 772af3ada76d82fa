"""Every error as OpenAI's JSON: ``{"error": {"message", "type", "param", "code"}}``."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from obstore.exceptions import BaseError as StorageError
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException

from api.once import ReplayError, replayed
from api.validation_message import explain
from core.errors import AuthenticationError, HoneError
from core.logging import get_logger

log = get_logger(__name__)

#: Seconds that a client is asked to wait while the database is away; OpenAI's client obeys up to 120.
RETRY_AFTER = "5"

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


def error_response(
    status: int,
    message: str,
    *,
    type: str | None = None,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
    details: Mapping[str, Any] | None = None,
) -> JSONResponse:
    """An error in OpenAI's shape; ``details`` are ours, under ``hone``."""
    kind = type or _TYPES.get(status) or ("server_error" if status >= 500 else "invalid_request_error")
    told: dict[str, Any] = {"message": message, "type": kind, "param": param, "code": code}
    body = {"error": told if details is None else {**told, "hone": details}}
    return JSONResponse(body, status_code=status, headers=dict(headers or {}))


async def hone_error(_: Request, error: Exception) -> JSONResponse:
    """One of our own errors: it knows its status and words."""
    assert isinstance(error, HoneError)
    headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, AuthenticationError) else {}
    return error_response(
        error.status,
        error.message,
        type=error.type,
        param=error.param,
        code=error.code,
        headers=headers,
        details=error.details,
    )


async def validation_error(request: Request, error: Exception) -> JSONResponse:
    """A field that does not fit: 400 as at OpenAI, whose client has no use for FastAPI's 422."""
    assert isinstance(error, RequestValidationError)
    told = explain(error, request.scope.get("route"))
    return error_response(400, told.message, param=told.param, code=told.code)


async def http_error(request: Request, error: Exception) -> JSONResponse:
    """What Starlette itself refuses: no such route, wrong method, body too large."""
    assert isinstance(error, HTTPException)
    messages = {
        404: f"Unknown request URL: {request.method} {request.url.path}. See /docs for what there is.",
        405: f"Not allowed method: {request.method} {request.url.path}. See /docs for what there is.",
    }
    message = str(error.detail)
    if message == HTTPStatus(error.status_code).phrase:
        message = messages.get(error.status_code, message)
    codes = {404: "unknown_url", 405: "method_not_allowed", 413: "body_too_large"}
    return error_response(error.status_code, message, code=codes.get(error.status_code), headers=error.headers)


async def database_away(_: Request, error: Exception) -> JSONResponse:
    """The database did not answer: nothing was changed, and trying again is right."""
    log.error("database_unavailable", error=str(error))
    return error_response(
        503,
        "The database can't be reached at the moment; nothing was changed. Try again in a few seconds.",
        code="database_unavailable",
        headers={"Retry-After": RETRY_AFTER},
    )


async def storage_away(_: Request, error: Exception) -> JSONResponse:
    """The storage did not answer."""
    log.error("storage_unavailable", error=str(error))
    message = "The storage can't be reached at the moment. Try again in a few seconds."
    return error_response(503, message, code="storage_unavailable", headers={"Retry-After": RETRY_AFTER})


def unexpected_error(request_id: str) -> JSONResponse:
    """A fault of ours: the details are in the log alone, under the request's id."""
    message = f"The server met an unexpected error. Its log has the details under the request id {request_id}."
    return error_response(500, message, code="internal_error")


def install_error_handlers(app: FastAPI) -> None:
    """Answer every error in one shape; what is left falls to ``middleware.RequestLog``."""
    app.add_exception_handler(HoneError, hone_error)
    app.add_exception_handler(RequestValidationError, validation_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(StorageError, storage_away)
    app.add_exception_handler(ReplayError, replayed)
    for away in (OperationalError, InterfaceError, PoolTimeoutError):
        app.add_exception_handler(away, database_away)
