"""Which fine-tuned models a project may use: its own, and those that another project's permission lets it use.

A checkpoint is a model as well, under the name that lists of checkpoints tell; whether its job has ended, and how,
makes no difference.
"""

from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, exists, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from core.model_names import checkpoint_name, fine_tuned_model_id, read_checkpoint_name
from models.status import JobKind
from models.tables import Checkpoint, CheckpointPermission, File, FineTunedModel, Job, Project


@dataclass(frozen=True)
class UsableModel:
    """A fine-tuned model, or a checkpoint of one, that a project may use under the name ``id``."""

    id: str
    project_id: str
    job_id: str
    base_model: str
    prompt_template: str
    created_at: float
    #: What is locked when something is to be done to the model.
    row: FineTunedModel | Checkpoint
    #: The zip with its adapter.
    adapter: File | Checkpoint


def may_use(project_id: str, name: str | InstrumentedAttribute[str]) -> ColumnElement[bool]:
    """Whether the project may use the model of a row under ``name``, the model's own or a checkpoint's."""
    return or_(FineTunedModel.project_id == project_id, _granted(project_id, name))


def _granted(project_id: str, name: str | InstrumentedAttribute[str]) -> ColumnElement[bool]:
    return exists().where(CheckpointPermission.project_id == project_id, CheckpointPermission.model == name)


def find_model(session: Session, project_id: str, name: str) -> UsableModel | None:
    """A fine-tuned model or a checkpoint that the project may use, if there is one of that name."""
    query = (
        select(FineTunedModel, File)
        .join(File, File.id == FineTunedModel.adapter_file_id)
        .where(FineTunedModel.id == name, may_use(project_id, name))
    )
    found = session.execute(query).first()
    if found is None:
        return _find_checkpoint(session, project_id, name)
    model, file = found
    return UsableModel(
        id=model.id,
        project_id=model.project_id,
        job_id=model.job_id,
        base_model=model.base_model,
        prompt_template=model.prompt_template,
        created_at=model.created_at,
        row=model,
        adapter=file,
    )


def granted_checkpoints(session: Session, project_id: str) -> list[UsableModel]:
    """The other projects' checkpoints that permissions let a project use."""
    names = select(CheckpointPermission.model).where(
        CheckpointPermission.project_id == project_id, CheckpointPermission.model.contains(":ckpt-step-")
    )
    found = [_find_checkpoint(session, project_id, name) for name in session.scalars(names).all()]
    return [model for model in found if model is not None]


def _find_checkpoint(session: Session, project_id: str, name: str) -> UsableModel | None:
    told = read_checkpoint_name(name)
    if told is None:
        return None
    ending, step = told
    granted = select(CheckpointPermission.job_id).where(
        CheckpointPermission.project_id == project_id, CheckpointPermission.model == name
    )
    mine = and_(Job.project_id == project_id, Job.id.endswith(ending, autoescape=True))
    query = (
        select(Job, Project.name, Checkpoint)
        .join(Project, Project.id == Job.project_id)
        .join(Checkpoint, Checkpoint.job_id == Job.id)
        .where(Job.kind == JobKind.FINE_TUNE, Checkpoint.step == step, or_(mine, Job.id.in_(granted)))
    )
    for job, project, checkpoint in session.execute(query):
        if checkpoint_name(model_name(job, project), step) == name:
            return UsableModel(
                id=name,
                project_id=job.project_id,
                job_id=job.id,
                base_model=job.spec.get("base_model") or job.model,
                prompt_template=(job.resolved or {}).get("prompt_template", "auto"),
                created_at=checkpoint.created_at,
                row=checkpoint,
                adapter=checkpoint,
            )
    return None


def model_name(job: Job, project: str) -> str:
    """The name of the model that a job makes, whether it has made it yet or not."""
    base = job.spec.get("base_model") or job.model
    return job.fine_tuned_model or fine_tuned_model_id(base, job.spec.get("suffix"), project, job.id)
