"""What forms share: reading what was typed, refusals at their field, and the files that they offer."""

import contextlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.json_body import parse
from api.validation_message import explain
from core.errors import HoneError, InvalidRequestError
from models.tables import File

#: Files that a form offers, the newest first; older ones are named by their id.
OFFERED = 200

Body = TypeVar("Body", bound=BaseModel)


@dataclass(frozen=True)
class Refusal:
    """Why a form was not taken, and at which field."""

    message: str
    param: str | None


async def typed(request: Request) -> dict[str, str]:
    """The form's fields as they were sent."""
    async with request.form(max_files=0, max_fields=100) as form:
        return {name: value for name, value in form.items() if isinstance(value, str)}


def parsed(text: str) -> Any:
    """What a field's text stands for: a number, true, false, a list of words, or the word itself."""
    if re.fullmatch(r"[-+]?\d{1,18}", text):
        return int(text)
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(text)
    return [word.strip() for word in text.split(",")] if "," in text else text


def require_storable(values: Any) -> None:
    """Refuse text that neither database could store. Raises InvalidRequestError."""
    try:
        parse(json.dumps(values))
    except json.JSONDecodeError as error:
        raise InvalidRequestError(f"This form can't be stored: {error.msg}.") from None


def checked(model: type[Body], body: dict[str, Any]) -> Body:
    """A body as the API checks it. Raises RequestValidationError."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        places = [{**entry, "loc": ("body", *entry["loc"])} for entry in error.errors(include_context=False)]
        raise RequestValidationError(places, body=body) from None


def as_refusal(error: HoneError | RequestValidationError, field_of: Callable[[str | None], str | None]) -> Refusal:
    """An error in words; ``field_of`` tells the form's field by the request's."""
    if isinstance(error, HoneError):
        return Refusal(error.message, field_of(error.param))
    told = explain(error, None)
    return Refusal(told.message, field_of(told.param))


def offered_files(session: Session, project_id: str, purpose: str) -> list[File]:
    """A project's files of a purpose, the newest first."""
    mine = select(File).where(File.project_id == project_id, File.purpose == purpose)
    return list(session.scalars(mine.order_by(File.id.desc()).limit(OFFERED)))
