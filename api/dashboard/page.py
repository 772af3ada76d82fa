"""What every page shares: who looks, the template, the headers, and errors as pages."""

from collections.abc import Callable, Coroutine
from functools import wraps
from http import HTTPStatus
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlsplit

import structlog
from fastapi import Depends, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.routing import APIRoute
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from api.dashboard import shown
from api.dashboard.assets import asset
from api.deps import Parts, PartsDep
from core.errors import AuthenticationError, HoneError, InvalidRequestError
from core.logging import get_logger
from models import browsing
from models.browsing import Viewer

log = get_logger(__name__)

COOKIE = "hone_session"
THEME_COOKIE = "hone_theme"

#: Everything from this server, nothing inline: text of a dataset that got past the escaping could still do nothing.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "font-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}

_environment = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.globals.update(asset=asset, now=shown.now)
_environment.filters.update(shown.FILTERS)


class SignedOutError(AuthenticationError):
    """Nobody is signed in here."""


def _token(request: Request) -> str:
    return request.cookies.get(COOKIE, "")


def _find(parts: Parts, token: str) -> Viewer | None:
    with parts.database.read() as session:
        return browsing.find(session, token)


async def _viewer(request: Request, parts: PartsDep) -> Viewer:
    token = _token(request)
    viewer = await run_in_threadpool(_find, parts, token) if token else None
    if viewer is None:
        raise SignedOutError("Sign in with an API key first.", code="signed_out")
    request.state.viewer = viewer
    return viewer


#: Who looks; a page that asks for this sends others to the sign-in.
ViewerDep = Annotated[Viewer, Depends(_viewer)]


def page(request: Request, template: str, answer_status: int = 200, **context: Any) -> HTMLResponse:
    """A template as an answer."""
    theme = request.cookies.get(THEME_COOKIE)
    shared = {
        "request": request,
        "viewer": getattr(request.state, "viewer", None),
        "theme": theme if theme in ("light", "dark") else None,
        "path": request.url.path,
    }
    body = _environment.get_template(template).render(**shared, **context)
    return HTMLResponse(body, status_code=answer_status, headers=HEADERS)


def go_to(url: str) -> Response:
    """Send the browser to another page of ours, by GET."""
    return RedirectResponse(url, status_code=303, headers=HEADERS)


def local_path(text: str | None) -> str:
    """A path of this server out of what a request says, or ``/``: never another host."""
    parts = urlsplit(text or "/")
    unsafe = parts.scheme or parts.netloc or not parts.path.startswith("/") or "\\" in parts.path or "//" in parts.path
    return "/" if unsafe else parts.path + (f"?{parts.query}" if parts.query else "")


def require_same_origin(request: Request) -> None:
    """Refuse a form that another site's page has sent. Raises InvalidRequestError.

    Browsers say where a request comes from (Fetch Metadata); those that do not send ``Origin`` with every POST. The
    cookie is SameSite=Strict as well, so this is the second lock; for the sign-in, which needs no cookie, the first.
    """
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    if site is not None:
        trusted = site == "same-origin" or (site == "none" and origin is None)
    else:
        trusted = origin is not None and urlsplit(origin).netloc == request.headers.get("host")
    if not trusted:
        raise InvalidRequestError("This form was sent from another site. Open the page here and send it again.")


class PageRoute(APIRoute):
    """A route whose answers, errors too, are pages; whatever changes something has to come from a page of ours."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        if not iscoroutinefunction(endpoint):
            endpoint = _closing(endpoint)
        super().__init__(path, endpoint, **{**options, "include_in_schema": False, "response_model": None})

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, with its errors as pages."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:  # noqa: PLR0911 - one answer for each kind of error
            try:
                if request.method not in ("GET", "HEAD"):
                    require_same_origin(request)
                return await handler(request)
            except SignedOutError:
                return _sign_in_first(request)
            except HoneError as error:
                return _error(request, error.status, error.message)
            except RequestValidationError:
                return _error(request, 400, "Something in this address is not as it has to be.")
            except HTTPException as error:
                return _error(request, error.status_code, str(error.detail))
            except (OperationalError, InterfaceError, PoolTimeoutError) as error:
                log.error("database_unavailable", error=str(error))
                return _error(request, 503, "The database can't be reached at the moment. Try again in a few seconds.")
            except ClientDisconnect:
                raise
            except Exception:
                log.exception("unexpected_error", method=request.method, path=request.url.path)
                request_id = structlog.contextvars.get_contextvars().get("request_id", "")
                return _error(request, 500, f"The server's log has the details under the request id {request_id}.")

        return handle


def _closing(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """The endpoint, its session closed in its own thread (see ``api.json_body``)."""

    @wraps(endpoint)
    def answer(*args: Any, **kwargs: Any) -> Any:
        try:
            return endpoint(*args, **kwargs)
        finally:
            if (session := kwargs.get("session")) is not None:
                session.close()

    return answer


def _sign_in_first(request: Request) -> Response:
    if "hx-request" in request.headers:  # a part of a page: the whole page has to go
        return Response(status_code=204, headers={**HEADERS, "HX-Refresh": "true"})
    came_for = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    wanted = "" if request.method != "GET" or came_for == "/" else f"?next={quote(came_for)}"
    return go_to(f"/sign-in{wanted}")


def _error(request: Request, status: int, message: str) -> Response:
    title = {404: "Not found", 400: "That did not work"}.get(status, HTTPStatus(status).phrase)
    return page(request, "error.html", status, title=title, message=message)
