"""Which fine-tuned models a project may use: its own, and those that another project's permission lets it use."""

from sqlalchemy import ColumnElement, exists, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from models.tables import CheckpointPermission, FineTunedModel


def may_use(project_id: str, name: str | InstrumentedAttribute[str]) -> ColumnElement[bool]:
    """Whether the project may use the model of a row under ``name``, the model's own or a checkpoint's."""
    granted = exists().where(CheckpointPermission.project_id == project_id, CheckpointPermission.model == name)
    return or_(FineTunedModel.project_id == project_id, granted)


def find_model(session: Session, project_id: str, name: str) -> FineTunedModel | None:
    """A fine-tuned model that the project may use, if there is one of that name."""
    query = select(FineTunedModel).where(FineTunedModel.id == name, may_use(project_id, name))
    return session.scalar(query)
