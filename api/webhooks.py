"""/v1/webhook_endpoints: where a project is told that its jobs have ended, and what came of telling it."""

import base64
import secrets
import time
from typing import Annotated, get_args

from fastapi import APIRouter, Query
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from api.deps import CurrentProject, PartsDep, ReadSession, SettingsDep, WriteSession
from api.json_body import StrictJsonRoute
from api.pagination import After, Page, fetch_page, page_of
from api.webhook_schemas import (
    DeliveryObject,
    EndpointDeleted,
    EndpointObject,
    EndpointRequest,
    EndpointUpdate,
    EndpointWithSecret,
    EventType,
    EventTypeList,
    RotateRequest,
    TestRequest,
    TestResult,
    delivery_object,
    endpoint_object,
    endpoint_with_secret,
)
from api.webhook_sender import send
from api.webhook_targets import check_url
from core.errors import InvalidRequestError, NotFoundError
from core.ids import new_id
from models import webhooks
from models.tables import WebhookDelivery, WebhookEndpoint
from models.webhooks import Outgoing

router = APIRouter(prefix="/v1", tags=["webhooks"], route_class=StrictJsonRoute)

#: Each end of a job writes a row for each of them.
_MAX_ENDPOINTS = 20
_DAY = 86_400

Limit = Annotated[int, Query(ge=1, le=100)]


def new_secret() -> str:
    """A secret as Standard Webhooks has it: 256 random bits."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


def get_endpoint(session: Session, project_id: str, endpoint_id: str) -> WebhookEndpoint:
    """A project's endpoint. Raises NotFoundError for another project's as for none."""
    mine = (WebhookEndpoint.id == endpoint_id, WebhookEndpoint.project_id == project_id)
    row = session.scalar(select(WebhookEndpoint).where(*mine))
    if row is None:
        raise NotFoundError(f"No webhook endpoint '{endpoint_id:.80}' exists in this project.", code="not_found")
    return row


@router.get("/webhook_event_types")
def list_event_types(project_id: CurrentProject) -> EventTypeList:
    """The events that an endpoint may ask for."""
    return EventTypeList(data=list(get_args(EventType)))


@router.post("/webhook_endpoints")
def create_endpoint(
    body: EndpointRequest, project_id: CurrentProject, settings: SettingsDep, session: WriteSession
) -> EndpointWithSecret:
    """Make an endpoint; its secret is shown here and never again."""
    url = check_url(body.url, private_allowed=settings.webhook_private_targets)
    count = select(func.count()).select_from(WebhookEndpoint).where(WebhookEndpoint.project_id == project_id)
    if (session.scalar(count) or 0) >= _MAX_ENDPOINTS:
        raise InvalidRequestError(
            f"This project has {_MAX_ENDPOINTS} webhook endpoints already. Delete one.", code="too_many_endpoints"
        )
    types = {"types": body.event_types}
    row = WebhookEndpoint(project_id=project_id, name=body.name, url=url, event_types=types, secret=new_secret())
    session.add(row)
    session.flush()
    return endpoint_with_secret(row)


@router.get("/webhook_endpoints")
def list_endpoints(
    project_id: CurrentProject, session: ReadSession, after: After = None, limit: Limit = 20
) -> Page[EndpointObject]:
    """The project's endpoints, newest first."""
    query = select(WebhookEndpoint).where(WebhookEndpoint.project_id == project_id)
    rows, has_more = fetch_page(session, query, WebhookEndpoint.id, after=after, limit=limit, order="desc")
    return page_of([endpoint_object(row) for (row,) in rows], has_more)


@router.get("/webhook_endpoints/{endpoint_id}")
def retrieve_endpoint(endpoint_id: str, project_id: CurrentProject, session: ReadSession) -> EndpointObject:
    """One endpoint."""
    return endpoint_object(get_endpoint(session, project_id, endpoint_id))


@router.post("/webhook_endpoints/{endpoint_id}")
def update_endpoint(
    endpoint_id: str, body: EndpointUpdate, project_id: CurrentProject, settings: SettingsDep, session: WriteSession
) -> EndpointObject:
    """Change what the body names."""
    row = get_endpoint(session, project_id, endpoint_id)
    before = endpoint_object(row)
    row.name = body.name or row.name
    if body.url is not None:
        row.url = check_url(body.url, private_allowed=settings.webhook_private_targets)
    if body.event_types is not None:
        row.event_types = {"types": body.event_types}
    if endpoint_object(row) != before:
        row.updated_at = webhooks.clock(session)
    session.flush()
    return endpoint_object(row)


@router.delete("/webhook_endpoints/{endpoint_id}")
def delete_endpoint(endpoint_id: str, project_id: CurrentProject, session: WriteSession) -> EndpointDeleted:
    """Delete an endpoint with its deliveries, those that wait included."""
    row = get_endpoint(session, project_id, endpoint_id)
    session.execute(delete(WebhookEndpoint).where(WebhookEndpoint.id == row.id))
    return EndpointDeleted(id=row.id)


@router.post("/webhook_endpoints/{endpoint_id}/rotate_secret")
def rotate_secret(
    endpoint_id: str, project_id: CurrentProject, session: WriteSession, body: RotateRequest | None = None
) -> EndpointWithSecret:
    """Give an endpoint a new secret; on request, the old one signs beside it for a day."""
    row = get_endpoint(session, project_id, endpoint_id)
    now = webhooks.clock(session)
    keep = body is not None and body.keep_old_secret_active_for_24_hours
    row.old_secret, row.old_secret_expires_at = (row.secret, now + _DAY) if keep else (None, None)
    row.secret, row.updated_at = new_secret(), now
    session.flush()
    return endpoint_with_secret(row)


@router.post("/webhook_endpoints/{endpoint_id}/test")
def test_endpoint(endpoint_id: str, body: TestRequest, project_id: CurrentProject, parts: PartsDep) -> TestResult:
    """Send a sample event now, once; a receiver that can't be reached is a 400."""
    with parts.database.read() as session:
        row = get_endpoint(session, project_id, endpoint_id)
        valid = webhooks.secrets_of(row, webhooks.clock(session))
    event_id = new_id("evt_")
    subject = new_id("ftjob-" if body.event_type.startswith("fine_tuning") else "evalrun_")
    sample = webhooks.event_body(event_id, body.event_type, subject, time.time())
    outgoing = Outgoing("", 1, row.url, valid, event_id, sample)
    [outcome] = send([outgoing], private_allowed=parts.settings.webhook_private_targets)
    if outcome.status_code is None:
        raise InvalidRequestError(f"The sample could not be delivered: {outcome.error}.", code="webhook_unreachable")
    return TestResult(webhook_endpoint_id=row.id, event_type=body.event_type, status_code=outcome.status_code)


@router.get("/webhook_endpoints/{endpoint_id}/deliveries")
def list_deliveries(
    endpoint_id: str, project_id: CurrentProject, session: ReadSession, after: After = None, limit: Limit = 20
) -> Page[DeliveryObject]:
    """What was sent to an endpoint in the last 30 days, or will be; newest first."""
    row = get_endpoint(session, project_id, endpoint_id)
    query = select(WebhookDelivery).where(WebhookDelivery.endpoint_id == row.id)
    rows, has_more = fetch_page(session, query, WebhookDelivery.id, after=after, limit=limit, order="desc")
    return page_of([delivery_object(delivery) for (delivery,) in rows], has_more)


@router.post("/webhook_endpoints/{endpoint_id}/deliveries/{delivery_id}/replay")
def replay_delivery(
    endpoint_id: str, delivery_id: str, project_id: CurrentProject, session: WriteSession
) -> DeliveryObject:
    """Deliver an event once more, under its old id."""
    row = get_endpoint(session, project_id, endpoint_id)
    mine = (WebhookDelivery.id == delivery_id, WebhookDelivery.endpoint_id == row.id)
    delivery = session.scalar(select(WebhookDelivery).where(*mine).with_for_update())
    if delivery is None:
        raise NotFoundError(f"No delivery '{delivery_id:.80}' exists at this endpoint.", code="not_found")
    webhooks.replay(session, delivery)
    session.flush()
    return delivery_object(delivery)
