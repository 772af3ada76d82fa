"""/v1/fine_tuning/checkpoints/{model}/permissions: let other projects of this server use a fine-tuned model."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from api.deps import CurrentProject, ReadSession, WriteSession
from api.json_body import StrictJsonRoute
from api.pagination import After, Page, fetch_page, page_of
from api.permission_schemas import PermissionDeleted, PermissionObject, PermissionRequest, permission_object
from core.errors import InvalidRequestError, NotFoundError, PermissionDeniedError
from models.access import UsableModel, find_model
from models.tables import CheckpointPermission, Project

router = APIRouter(
    # A path, as in api.models: the names hold slashes.
    prefix="/v1/fine_tuning/checkpoints/{model_id:path}/permissions",
    tags=["fine-tuning"],
    route_class=StrictJsonRoute,
)


def _require_owned(session: Session, project_id: str, name: str) -> UsableModel:
    """The model, if it is the project's own. Raises NotFoundError, or PermissionDeniedError for one that it may use."""
    model = find_model(session, project_id, name)
    if model is None:
        raise NotFoundError(
            f"The model '{name:.200}' does not exist here. GET /v1/models lists those that do.",
            param="fine_tuned_model_checkpoint",
            code="model_not_found",
        )
    if model.project_id != project_id:
        raise PermissionDeniedError(
            f"The model '{name:.200}' belongs to another project, and only that project's keys manage who may use it.",
            param="fine_tuned_model_checkpoint",
            code="not_the_owner",
        )
    return model


@router.post("")
def create_permissions(
    model_id: str, body: PermissionRequest, project_id: CurrentProject, session: WriteSession
) -> Page[PermissionObject]:
    """Let each of the projects use the model; one that already may keeps the permission that it has."""
    model = _require_owned(session, project_id, model_id)
    session.refresh(model.row, with_for_update=True)  # two requests must not grant the same twice
    for place, grantee in enumerate(body.project_ids):
        _require_other(session, project_id, grantee, f"project_ids[{place}]")
    rows = [_grant(session, model, model_id, grantee) for grantee in dict.fromkeys(body.project_ids)]
    return page_of([permission_object(row) for row in rows], has_more=False)


def _require_other(session: Session, owner: str, grantee: str, param: str) -> None:
    if grantee == owner:
        raise InvalidRequestError(f"'{param}': this project owns the model.", param=param, code="own_project")
    if session.get(Project, grantee) is None:
        raise InvalidRequestError(
            f"'{param}': no project '{grantee:.80}' exists on this server. "
            "A project's id is the organization_id of its jobs.",
            param=param,
            code="project_not_found",
        )


def _grant(session: Session, model: UsableModel, name: str, grantee: str) -> CheckpointPermission:
    held = select(CheckpointPermission).filter_by(model=name, project_id=grantee)
    row = session.scalar(held)
    if row is None:
        row = CheckpointPermission(job_id=model.job_id, model=name, project_id=grantee)
        session.add(row)
        session.flush()
    return row


@router.get("")
def list_permissions(
    model_id: str,
    owner: CurrentProject,
    session: ReadSession,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 10,
    order: Literal["ascending", "descending"] = "descending",
    project_id: Annotated[str | None, Query(max_length=64)] = None,
) -> Page[PermissionObject]:
    """Who may use the model; `project_id` asks for one project."""
    _require_owned(session, owner, model_id)
    query = select(CheckpointPermission).where(CheckpointPermission.model == model_id)
    if project_id is not None:
        query = query.where(CheckpointPermission.project_id == project_id)
    direction: Literal["asc", "desc"] = "asc" if order == "ascending" else "desc"
    rows, has_more = fetch_page(session, query, CheckpointPermission.id, after=after, limit=limit, order=direction)
    return page_of([permission_object(row) for (row,) in rows], has_more)


@router.delete("/{permission_id}")
def delete_permission(
    model_id: str, permission_id: str, project_id: CurrentProject, session: WriteSession
) -> PermissionDeleted:
    """Take a permission back: the project's next request for the model is refused, and a run that waits fails."""
    _require_owned(session, project_id, model_id)
    mine = (CheckpointPermission.id == permission_id, CheckpointPermission.model == model_id)
    if session.scalar(select(CheckpointPermission.id).where(*mine)) is None:
        raise NotFoundError(f"No permission '{permission_id:.80}' of this model exists.", code="not_found")
    session.execute(delete(CheckpointPermission).where(*mine))
    return PermissionDeleted(id=permission_id)
