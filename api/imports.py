"""/v1/files/imports: a dataset of the Hugging Face Hub, by its id, becomes a file."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field, StringConstraints, model_validator
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from api.deps import CurrentProject, OnceDep, Parts, PartsDep, ReadSession, WriteSession
from api.json_body import StrictJsonRoute
from api.once import Once
from api.pagination import After, Listed, Order, Page, fetch_page, page_of
from core.dataset import FIELDS
from core.errors import InvalidRequestError, NotFoundError
from core.hub_order import CONFIG, DATASET, REVISION, SPLIT, Asked, Purpose, require_allowed
from core.specs import Spec
from models.base import db_now
from models.tables import FileImport

router = APIRouter(prefix="/v1/files/imports", tags=["files"], route_class=StrictJsonRoute)

#: Imports of a project that may wait; they are carried out one after the other.
_MOST_WAITING = 20

_Column = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class ImportRequest(Spec):
    """The body of POST /v1/files/imports."""

    dataset: str = Field(max_length=200, pattern=DATASET, description="As on the Hub: `owner/name`.")
    config: str | None = Field(None, pattern=CONFIG, description="Configuration (subset); needed where several are.")
    split: str = Field("train", max_length=128, pattern=SPLIT)
    revision: str | None = Field(
        None, max_length=128, pattern=REVISION, description="Branch, tag or commit; pinned to its commit."
    )
    purpose: Purpose = "fine-tune"
    columns: dict[Annotated[str, StringConstraints(pattern=r"^[^\x00]{1,256}$")], _Column] = Field(
        {}, max_length=64, description="Hone's field to the dataset's column, where the names differ."
    )
    skip_bad_rows: bool = Field(False, description="Leave out rows that can't be used, instead of refusing all.")

    @model_validator(mode="after")
    def _require_fields(self) -> "ImportRequest":
        unknown = [name for name in self.columns if self.purpose == "fine-tune" and name not in FIELDS]
        if unknown:
            raise ValueError(f"'columns' names the field '{unknown[0][:80]}'; a sample has {', '.join(FIELDS)}")
        return self


class ImportProgress(BaseModel):
    """How far an import is; ``total_bytes`` is 0 until the Hub has told."""

    bytes: int
    total_bytes: int
    rows: int


class ImportFailure(BaseModel):
    """Why there is no file; ``hone`` has the problems of its rows, if they are the reason."""

    message: str
    param: str | None
    code: str | None
    hone: dict[str, Any] | None


class ImportObject(Listed):
    """An import; ``file_id`` is there once it is completed."""

    object: Literal["file.import"] = "file.import"
    created_at: int
    status: Literal["queued", "running", "completed", "failed", "cancelled"]
    dataset: str
    config: str | None
    split: str
    revision: str | None
    purpose: str
    columns: dict[str, str]
    skip_bad_rows: bool
    progress: ImportProgress
    file_id: str | None
    error: ImportFailure | None


def import_object(row: FileImport) -> ImportObject:
    """An import's row as it goes onto the wire."""
    error = row.error and {
        **{name: row.error[name] for name in ("message", "param", "code")},
        "hone": row.error["details"],
    }
    return ImportObject.model_validate(
        {
            **row.asked,
            "id": row.id,
            "created_at": int(row.created_at),
            "status": row.status,
            "progress": {"bytes": row.bytes, "total_bytes": row.total_bytes, "rows": row.rows},
            "file_id": row.file_id,
            "error": error or None,
        }
    )


@router.post("")
def create_import(body: ImportRequest, project_id: CurrentProject, parts: PartsDep, once: OnceDep) -> ImportObject:
    """Import a split of a dataset that the operator allows. Answers at once; GET tells how far it is."""
    return import_object(begin(parts, project_id, body, once))


def begin(parts: Parts, project_id: str, body: ImportRequest, once: Once | None = None) -> FileImport:
    """Write an import down and have it begun. Raises PermissionDeniedError and InvalidRequestError."""
    require_allowed(parts.settings, body.dataset)
    with parts.database.write() as session:
        if once is not None:
            once.begin(session)
        _require_room(session, project_id)
        row = FileImport(project_id=project_id, asked=Asked(**body.model_dump()).model_dump(mode="json"))
        session.add(row)
        session.flush()
        session.refresh(row)
        if once is not None:
            once.keep(session, import_object(row))
    parts.imports.wake()
    return row


def _require_room(session: Session, project_id: str) -> None:
    mine = (FileImport.project_id == project_id, FileImport.status.in_(("queued", "running")))
    if (session.scalar(select(func.count()).select_from(FileImport).where(*mine)) or 0) >= _MOST_WAITING:
        raise InvalidRequestError(
            f"{_MOST_WAITING} imports of this project are waiting already. Wait for one, or cancel it.",
            code="too_many_imports",
        )


@router.get("")
def list_imports(
    project_id: CurrentProject,
    session: ReadSession,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Order = "desc",
) -> Page[ImportObject]:
    """The project's imports."""
    query = select(FileImport).where(FileImport.project_id == project_id)
    rows, has_more = fetch_page(session, query, FileImport.id, after=after, limit=limit, order=order)
    return page_of([import_object(row) for (row,) in rows], has_more)


@router.get("/{import_id}")
def retrieve_import(import_id: str, project_id: CurrentProject, session: ReadSession) -> ImportObject:
    """One import."""
    return import_object(_get(session, project_id, import_id))


@router.post("/{import_id}/cancel")
def cancel_import(import_id: str, project_id: CurrentProject, session: WriteSession) -> ImportObject:
    """Give an import up; whoever carries it out notices within some seconds, and nothing of it stays."""
    row = _get(session, project_id, import_id)
    change = update(FileImport).where(FileImport.id == row.id, FileImport.status.in_(("queued", "running")))
    session.execute(change.values(status="cancelled", updated_at=db_now()))
    session.refresh(row)
    if row.status != "cancelled":
        raise InvalidRequestError(
            f"The import {row.id} can't be cancelled: it is {row.status}.", param="import_id", code="import_ended"
        )
    return import_object(row)


def _get(session: Session, project_id: str, import_id: str) -> FileImport:
    """A project's import. Raises NotFoundError for another project's as for none."""
    row = session.scalar(select(FileImport).where(FileImport.id == import_id, FileImport.project_id == project_id))
    if row is None:
        raise NotFoundError(f"No import '{import_id:.80}' exists in this project.", code="not_found")
    return row
