"""Sign in and out. The key goes into the body of one request; from then on a cookie stands for it."""

from typing import Annotated

from fastapi import APIRouter, Form, Query, Request, Response

from api.dashboard.page import COOKIE, PageRoute, go_to, local_path, page
from api.deps import PartsDep
from core.errors import AuthenticationError
from models import browsing

router = APIRouter(route_class=PageRoute)

Next = Annotated[str | None, Query(max_length=2048)]


@router.get("/sign-in")
def sign_in_page(request: Request, next: Next = None) -> Response:
    """The form."""
    return page(request, "sign_in.html", next=local_path(next), error=None)


@router.post("/sign-in")
def sign_in(
    request: Request,
    parts: PartsDep,
    key: Annotated[str, Form(max_length=512)] = "",
    next: Annotated[str | None, Form(max_length=2048)] = None,
) -> Response:
    """Begin a session for a valid key."""
    try:
        with parts.database.write() as session:
            token = browsing.begin(session, key.strip())
    except AuthenticationError as error:
        return page(request, "sign_in.html", 401, next=local_path(next), error=error.message)
    answer = go_to(local_path(next))
    answer.set_cookie(
        COOKIE,
        token,
        max_age=browsing.LIFETIME,
        path="/",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
    return answer


@router.post("/sign-out")
def sign_out(request: Request, parts: PartsDep) -> Response:
    """End the session here and in the database."""
    with parts.database.write() as session:
        browsing.end(session, request.cookies.get(COOKIE, ""))
    answer = go_to("/sign-in")
    answer.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
    return answer
