"""What webhooks look like on the wire: OpenAI's endpoint, and Hone's log of deliveries."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field

from api.pagination import Listed
from core.specs import Spec
from models.tables import WebhookDelivery, WebhookEndpoint
from models.webhooks import types_of

#: The events that happen here; OpenAI has more, which would never come.
EventType = Literal[
    "eval.run.canceled",
    "eval.run.failed",
    "eval.run.succeeded",
    "fine_tuning.job.cancelled",
    "fine_tuning.job.failed",
    "fine_tuning.job.succeeded",
]

EventTypes = Annotated[
    list[EventType], Field(min_length=1, max_length=64), AfterValidator(lambda types: list(dict.fromkeys(types)))
]
Name = Annotated[str, Field(min_length=1, max_length=256)]
Url = Annotated[str, Field(min_length=1, max_length=2048)]


class EndpointRequest(Spec):
    """The body of POST /v1/webhook_endpoints."""

    name: Name
    url: Url
    event_types: EventTypes


class EndpointUpdate(Spec):
    """The body of POST /v1/webhook_endpoints/{id}: what is not named stays."""

    name: Name | None = None
    url: Url | None = None
    event_types: EventTypes | None = None


class RotateRequest(Spec):
    """The body of POST /v1/webhook_endpoints/{id}/rotate_secret."""

    keep_old_secret_active_for_24_hours: bool = False


class TestRequest(Spec):
    """The body of POST /v1/webhook_endpoints/{id}/test."""

    event_type: EventType


class EndpointObject(Listed):
    """OpenAI's webhook endpoint; of the secret, its last four characters."""

    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    name: str
    url: str
    event_types: list[str]
    signing_secret_hint: str
    created_at: int
    updated_at: int


class EndpointWithSecret(EndpointObject):
    """An endpoint at the one moment when its secret is shown."""

    signing_secret: str


class EndpointDeleted(BaseModel):
    """What a deletion answers."""

    id: str
    object: Literal["webhook_endpoint.deleted"] = "webhook_endpoint.deleted"
    deleted: Literal[True] = True


class TestResult(BaseModel):
    """What the receiver answered to a sample."""

    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    webhook_endpoint_id: str
    event_type: str
    status_code: int
    success: Literal[True] = True


class EventTypeList(BaseModel):
    """The events that an endpoint may ask for."""

    object: Literal["list"] = "list"
    data: list[str]


class DeliveryTry(BaseModel):
    """One try: when, how long it took, and the receiver's status or why there is none."""

    at: float
    seconds: float
    status_code: int | None
    error: str | None


class DeliveryObject(Listed):
    """One event on its way to one endpoint."""

    object: Literal["webhook_endpoint.delivery"] = "webhook_endpoint.delivery"
    webhook_endpoint_id: str
    event_id: str
    event_type: str
    status: str
    tries: list[DeliveryTry]
    next_try_at: int | None
    created_at: int


def endpoint_object(row: WebhookEndpoint) -> EndpointObject:
    """An endpoint's row as it goes onto the wire."""
    return EndpointObject(
        id=row.id,
        name=row.name,
        url=row.url,
        event_types=list(types_of(row)),
        signing_secret_hint=f"whsec_...{row.secret[-4:]}",
        created_at=int(row.created_at),
        updated_at=int(row.updated_at),
    )


def endpoint_with_secret(row: WebhookEndpoint) -> EndpointWithSecret:
    """An endpoint's row with its secret."""
    return EndpointWithSecret(**endpoint_object(row).model_dump(), signing_secret=row.secret)


def delivery_object(row: WebhookDelivery) -> DeliveryObject:
    """A delivery's row as it goes onto the wire."""
    return DeliveryObject(
        id=row.id,
        webhook_endpoint_id=row.endpoint_id,
        event_id=row.event_id,
        event_type=row.event_type,
        status=row.status,
        tries=[DeliveryTry.model_validate(entry) for entry in row.log["tries"]],
        next_try_at=None if row.next_try_at is None else int(row.next_try_at),
        created_at=int(row.created_at),
    )
