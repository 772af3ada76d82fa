"""Cursor pages. Ids sort by time, so a cursor is the id of the last row of the page before, be it gone since."""

import re
from typing import Annotated, Any, Generic, Literal, TypeVar, TypeVarTuple

from fastapi import Query
from pydantic import BaseModel
from sqlalchemy import ColumnElement, Select, literal, tuple_
from sqlalchemy.orm import InstrumentedAttribute, Session

from core.errors import InvalidRequestError

Order = Literal["asc", "desc"]
After = Annotated[str | None, Query(max_length=64, description="Id of the last object of the page before.")]

#: The part of an id behind its prefix (Crockford's Base32).
_ULID = re.compile(r"[0-9a-hjkmnp-tv-z]{26}")

Columns = TypeVarTuple("Columns")


class Listed(BaseModel):
    """An object that lists hold: it has an id."""

    id: str


Item = TypeVar("Item", bound=Listed)


class Page(BaseModel, Generic[Item]):
    """A page of a list."""

    object: Literal["list"] = "list"
    data: list[Item]
    first_id: str | None
    last_id: str | None
    has_more: bool


def fetch_page(
    session: Session,
    query: Select[*Columns],
    id_column: InstrumentedAttribute[str],
    *,
    after: str | None,
    limit: int,
    order: Order,
    by: ColumnElement[float] | None = None,
) -> tuple[list[tuple[*Columns]], bool]:
    """The rows of a page, and whether there are more; ``by``: sorted by this, and by id where it is the same.

    Raises InvalidRequestError when ``after`` is not in the list that ``query`` selects, and never can have been.
    """
    keys: list[ColumnElement[Any]] = [id_column] if by is None else [by, id_column]  # type: ignore[list-item]
    if after is not None:
        found = session.execute(query.where(id_column == after).with_only_columns(*keys)).one_or_none()
        if found is None and (by is not None or not _is_alike(session, query, id_column, after)):
            raise InvalidRequestError(
                f"The cursor '{after}' is not in this list. Use the last_id of the page before.",
                param="after",
                code="invalid_cursor",
            )
        place, end = tuple_(*keys), tuple_(*(literal(value) for value in found or (after,)))
        query = query.where(place < end if order == "desc" else place > end)
    query = query.order_by(*(key.desc() if order == "desc" else key.asc() for key in keys))
    rows: list[tuple[*Columns]] = list(session.execute(query.limit(limit + 1)))
    return rows[:limit], len(rows) > limit


def _is_alike(session: Session, query: Select[*Columns], id_column: InstrumentedAttribute[str], after: str) -> bool:
    """Whether a cursor looks as the list's ids do: who deletes what a page has shown goes on behind its last row."""
    some = session.scalar(query.with_only_columns(id_column).limit(1))
    return _ULID.fullmatch(after[-26:]) is not None and (some is None or after[:-26] == some[:-26])


def page_of(items: list[Item], has_more: bool) -> Page[Item]:
    """A page as it goes onto the wire."""
    return Page(
        data=items,
        first_id=items[0].id if items else None,
        last_id=items[-1].id if items else None,
        has_more=has_more,
    )
