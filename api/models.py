"""/v1/models: the catalogue's base models and the project's fine-tunes."""

from fastapi import APIRouter
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from api.deps import CatalogueDep, CurrentProject, ReadSession, WriteSession
from api.json_body import StrictJsonRoute
from api.pagination import Page, page_of
from api.schemas import (
    Deleted,
    ModelObject,
    base_model_object,
    checkpoint_model_object,
    fine_tuned_model_object,
)
from core.errors import InvalidRequestError, NotFoundError, PermissionDeniedError
from models.access import UsableModel, find_model, granted_checkpoints, may_use
from models.status import ENDED
from models.tables import CheckpointPermission, FineTunedModel, Job

router = APIRouter(prefix="/v1/models", tags=["models"], route_class=StrictJsonRoute)


def _get_model(session: Session, project_id: str, model_id: str) -> UsableModel:
    model = find_model(session, project_id, model_id)
    if model is None:
        raise NotFoundError(
            f"The model '{model_id:.200}' does not exist here. GET /v1/models lists those that do.",
            param="model",
            code="model_not_found",
        )
    return model


@router.get("")
def list_models(project_id: CurrentProject, session: ReadSession, catalogue: CatalogueDep) -> Page[ModelObject]:
    """Bases, then what was fine-tuned, newest first, also by permission; a job lists its own checkpoints."""
    bases = [base_model_object(name, entry.description) for name, entry in sorted(catalogue.items())]
    usable = select(FineTunedModel).where(may_use(project_id, FineTunedModel.id))
    tuned = [(model.created_at, fine_tuned_model_object(model)) for model in session.scalars(usable)]
    granted = granted_checkpoints(session, project_id)
    tuned += [(checkpoint.created_at, checkpoint_model_object(checkpoint)) for checkpoint in granted]
    newest_first = sorted(tuned, key=lambda made: (-made[0], made[1].id))
    return page_of(bases + [model for _, model in newest_first], has_more=False)


# A path: ids hold slashes, which OpenAI's client sends as %2F and the server sees as "/".
@router.get("/{model_id:path}")
def retrieve_model(
    model_id: str, project_id: CurrentProject, session: ReadSession, catalogue: CatalogueDep
) -> ModelObject:
    """One model."""
    if (entry := catalogue.get(model_id)) is not None:
        return base_model_object(model_id, entry.description)
    model = _get_model(session, project_id, model_id)
    if isinstance(model.row, FineTunedModel):
        return fine_tuned_model_object(model.row)
    return checkpoint_model_object(model)


@router.delete("/{model_id:path}")
def delete_model(model_id: str, project_id: CurrentProject, session: WriteSession, catalogue: CatalogueDep) -> Deleted:
    """Delete one of the project's fine-tunes with the permissions to use it; its files stay."""
    if model_id in catalogue:
        raise InvalidRequestError(
            f"'{model_id}' is a base model of this server's catalogue and can't be deleted.",
            param="model",
            code="base_model",
        )
    model = _get_model(session, project_id, model_id)
    if model.project_id != project_id:
        raise PermissionDeniedError(
            f"The model '{model_id:.200}' belongs to another project, and only that project's keys can delete it.",
            param="model",
            code="not_the_owner",
        )
    if not isinstance(model.row, FineTunedModel):
        raise InvalidRequestError(
            f"'{model_id:.200}' is a checkpoint. It stays for as long as its job.",
            param="model",
            code="is_a_checkpoint",
        )
    _require_unused(session, model.row)
    session.execute(delete(CheckpointPermission).where(CheckpointPermission.model == model.id))
    session.execute(delete(FineTunedModel).where(FineTunedModel.id == model.id))
    return Deleted(id=model_id, object="model")


def _require_unused(session: Session, model: FineTunedModel) -> None:
    """Raise InvalidRequestError while a job uses a model; of another project's job, nothing is told."""
    busy = select(Job.id, Job.project_id).where(Job.model == model.id, Job.status.not_in(ENDED)).limit(1)
    if (job := session.execute(busy).first()) is not None:
        who = f"The job {job.id}" if job.project_id == model.project_id else "A job of another project"
        raise InvalidRequestError(
            f"{who} uses '{model.id}'. Wait until it has ended, or cancel it.", param="model", code="model_in_use"
        )
