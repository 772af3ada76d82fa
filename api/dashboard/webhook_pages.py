"""Webhooks: a project's endpoints, and each event on its way to one of them."""

from collections.abc import Mapping
from typing import Annotated, Any, get_args

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from sqlalchemy.orm import Session

from api import webhooks
from api.dashboard.forms import Refusal, as_refusal, checked, require_storable, typed
from api.dashboard.page import PageRoute, ViewerDep, go_to, page
from api.deps import Parts, PartsDep, ReadSession
from api.pagination import After
from api.webhook_schemas import (
    EndpointObject,
    EndpointRequest,
    EndpointUpdate,
    EndpointWithSecret,
    EventType,
    RotateRequest,
    TestRequest,
)
from core.errors import InvalidRequestError

router = APIRouter(route_class=PageRoute)

#: A project has at most as many.
_A_PAGE = 20
EVENTS: tuple[str, ...] = get_args(EventType)
_REFUSALS = (InvalidRequestError, RequestValidationError)


# --- The form ---------------------------------------------------------------------------------------------------------


def body_of(form: Mapping[str, str]) -> dict[str, Any]:
    """The body of ``POST /v1/webhook_endpoints`` that a form asks for. Raises InvalidRequestError."""
    require_storable(form)
    texts = {name: form.get(name, "").strip() for name in ("name", "url")}
    return {**texts, "event_types": [event for event in EVENTS if form.get(f"event:{event}")]}


def values_of(endpoint: EndpointObject) -> dict[str, str]:
    """An endpoint as a form's fields."""
    events = {f"event:{event}": "true" for event in endpoint.event_types}
    return {"name": endpoint.name, "url": endpoint.url, **events}


# --- All of them ------------------------------------------------------------------------------------------------------


def _list(
    request: Request, session: Session, viewer: ViewerDep, values: Mapping[str, str], refused: Refusal | None = None
) -> Response:
    found = webhooks.list_endpoints(viewer.project_id, session, limit=_A_PAGE)
    return page(
        request,
        "webhooks.html",
        400 if refused else 200,
        endpoints=found.data,
        events=EVENTS,
        values=values,
        refusal=refused,
    )


@router.get("/webhooks")
def list_page(request: Request, viewer: ViewerDep, session: ReadSession) -> Response:
    """The project's endpoints, and the form for another one, which asks for every event."""
    return _list(request, session, viewer, {f"event:{event}": "true" for event in EVENTS})


@router.post("/webhooks")
async def create(request: Request, viewer: ViewerDep, parts: PartsDep) -> Response:
    """Make an endpoint; the answer shows its secret, this once."""
    return await run_in_threadpool(_create, request, viewer, parts, await typed(request))


def _create(request: Request, viewer: ViewerDep, parts: Parts, values: dict[str, str]) -> Response:
    try:
        body = checked(EndpointRequest, body_of(values))
        with parts.database.write() as session:
            made = webhooks.create_endpoint(body, viewer.project_id, parts.settings, session)
    except _REFUSALS as error:
        with parts.database.read() as session:
            return _list(request, session, viewer, values, as_refusal(error, lambda param: param))
    return _show(request, viewer, parts, made.id, secret=made)


# --- One --------------------------------------------------------------------------------------------------------------


def _deliveries(session: Session, viewer: ViewerDep, endpoint_id: str, after: str | None) -> dict[str, Any]:
    found = webhooks.list_deliveries(endpoint_id, viewer.project_id, session, after=after, limit=_A_PAGE)
    return {
        "deliveries": found.data,
        "more": found.has_more,
        "after": after,
        "endpoint_id": endpoint_id,
    }


def _show(
    request: Request,
    viewer: ViewerDep,
    parts: Parts,
    endpoint_id: str,
    *,
    values: Mapping[str, str] | None = None,
    refused: Refusal | None = None,
    secret: EndpointWithSecret | None = None,
    answered: int | None = None,
    after: str | None = None,
) -> Response:
    with parts.database.read() as session:
        endpoint = webhooks.retrieve_endpoint(endpoint_id, viewer.project_id, session)
        deliveries = _deliveries(session, viewer, endpoint_id, after)
    return page(
        request,
        "webhook.html",
        400 if refused else 200,
        endpoint=endpoint,
        events=EVENTS,
        values=values_of(endpoint) if values is None else values,
        edited=values is not None,
        refusal=refused,
        secret=secret.signing_secret if secret else None,
        answered=answered,
        **deliveries,
    )


@router.get("/webhooks/{endpoint_id}")
def endpoint_page(
    endpoint_id: str,
    request: Request,
    viewer: ViewerDep,
    parts: PartsDep,
    after: After = None,
    answered: Annotated[int | None, Query(ge=100, le=999)] = None,
) -> Response:
    """One endpoint, and what was sent to it; ``answered`` is the receiver's status for a sample that was just sent."""
    return _show(request, viewer, parts, endpoint_id, after=after, answered=answered)


@router.get("/webhooks/{endpoint_id}/deliveries")
def deliveries_part(
    endpoint_id: str, request: Request, viewer: ViewerDep, session: ReadSession, after: After = None
) -> Response:
    """What was sent to it, alone: a page that is open asks for it."""
    return page(request, "webhook_deliveries.html", **_deliveries(session, viewer, endpoint_id, after))


@router.post("/webhooks/{endpoint_id}")
async def update(endpoint_id: str, request: Request, viewer: ViewerDep, parts: PartsDep) -> Response:
    """Change name, address and events."""
    return await run_in_threadpool(_update, endpoint_id, request, viewer, parts, await typed(request))


def _update(endpoint_id: str, request: Request, viewer: ViewerDep, parts: Parts, values: dict[str, str]) -> Response:
    try:
        body = checked(EndpointUpdate, body_of(values))
        with parts.database.write() as session:
            webhooks.update_endpoint(endpoint_id, body, viewer.project_id, parts.settings, session)
    except _REFUSALS as error:
        refused = as_refusal(error, lambda param: param)
        return _show(request, viewer, parts, endpoint_id, values=values, refused=refused)
    return go_to(f"/webhooks/{endpoint_id}")


@router.post("/webhooks/{endpoint_id}/test")
async def test(endpoint_id: str, request: Request, viewer: ViewerDep, parts: PartsDep) -> Response:
    """Send a sample now."""
    return await run_in_threadpool(_test, endpoint_id, request, viewer, parts, await typed(request))


def _test(endpoint_id: str, request: Request, viewer: ViewerDep, parts: Parts, values: dict[str, str]) -> Response:
    try:
        body = checked(TestRequest, {"event_type": values.get("event_type", "")})
        found = webhooks.test_endpoint(endpoint_id, body, viewer.project_id, parts)
    except _REFUSALS as error:
        refused = as_refusal(error, lambda _: "event_type")
        return _show(request, viewer, parts, endpoint_id, refused=refused)
    return go_to(f"/webhooks/{endpoint_id}?answered={found.status_code}")


@router.post("/webhooks/{endpoint_id}/rotate")
async def rotate(endpoint_id: str, request: Request, viewer: ViewerDep, parts: PartsDep) -> Response:
    """Make a new secret; the answer shows it, this once."""
    return await run_in_threadpool(_rotate, endpoint_id, request, viewer, parts, await typed(request))


def _rotate(endpoint_id: str, request: Request, viewer: ViewerDep, parts: Parts, values: dict[str, str]) -> Response:
    body = RotateRequest(keep_old_secret_active_for_24_hours=values.get("keep") == "true")
    with parts.database.write() as session:
        made = webhooks.rotate_secret(endpoint_id, viewer.project_id, session, body)
    return _show(request, viewer, parts, endpoint_id, secret=made)


@router.post("/webhooks/{endpoint_id}/delete")
def delete(endpoint_id: str, viewer: ViewerDep, parts: PartsDep) -> Response:
    """Delete an endpoint with what waits for it."""
    with parts.database.write() as session:
        webhooks.delete_endpoint(endpoint_id, viewer.project_id, session)
    return go_to("/webhooks")


@router.post("/webhooks/{endpoint_id}/deliveries/{delivery_id}/replay")
def replay(endpoint_id: str, delivery_id: str, viewer: ViewerDep, parts: PartsDep) -> Response:
    """Deliver an event once more."""
    with parts.database.write() as session:
        webhooks.replay_delivery(endpoint_id, delivery_id, viewer.project_id, session)
    return go_to(f"/webhooks/{endpoint_id}")
