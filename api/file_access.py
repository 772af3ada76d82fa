"""Files by id, and who still needs them. Deleting and using a file lock its row, so that neither misses the other."""

from collections.abc import Sequence

from sqlalchemy import ColumnElement, and_, delete, exists, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from core.errors import InvalidRequestError, NotFoundError
from models.base import db_now
from models.status import ENDED
from models.tables import File, FineTunedModel, Job

#: Where a spec names a file.
_INPUTS = ("training_file", "validation_file", "items_file")
#: Expired files that one sweep deletes.
_SWEEP = 100


def get_file(session: Session, project_id: str, file_id: str) -> File:
    """A project's file. Raises NotFoundError for another project's as for none."""
    file = session.scalar(select(File).where(File.id == file_id, File.project_id == project_id))
    if file is None:
        raise NotFoundError(f"No file '{file_id:.80}' exists in this project.", code="not_found")
    return file


def require_input(session: Session, project_id: str, file_id: str, *, purpose: str, param: str) -> File:
    """A file that a new job will read; it can't be deleted before the job is committed. Raises InvalidRequestError."""
    mine = select(File).where(File.id == file_id, File.project_id == project_id)
    file = session.scalar(mine.with_for_update(read=True))
    if file is None:
        raise InvalidRequestError(
            f"'{param}': no file '{file_id:.80}' exists in this project. Upload it with POST /v1/files.",
            param=param,
            code="file_not_found",
        )
    if file.purpose != purpose:
        raise InvalidRequestError(
            f"'{param}': file {file.id} has the purpose '{file.purpose}'. Upload it with the purpose '{purpose}'.",
            param=param,
            code="wrong_purpose",
        )
    if file.status != "processed":
        raise InvalidRequestError(
            f"'{param}': file {file.id} can't be used: its status is '{file.status}'.", param=param, code="invalid_file"
        )
    return file


def delete_file(session: Session, project_id: str, file_id: str) -> str:
    """Delete a file's row and return the key of its bytes, to be deleted after the commit.

    Raises InvalidRequestError while a job or a model needs it.
    """
    session.execute(select(File.id).where(File.id == file_id, File.project_id == project_id).with_for_update())
    file = get_file(session, project_id, file_id)
    if reason := why_needed(session, file):
        raise InvalidRequestError(f"File {file.id} can't be deleted: {reason}", param="file_id", code="file_in_use")
    session.execute(delete(File).where(File.id == file.id))
    return file.storage_key


def why_needed(session: Session, file: File) -> str | None:
    """Why a file must stay, and what to do about it; None when nothing needs it."""
    model = session.scalar(select(FineTunedModel.id).where(FineTunedModel.adapter_file_id == file.id).limit(1))
    if model is not None:
        return f"it is the adapter of the model {model}. Delete the model first."
    job = session.scalar(select(Job.id).where(Job.project_id == file.project_id, _waits_for(file.id)).limit(1))
    return None if job is None else f"the job {job} reads it. Wait until the job has ended, or cancel it."


def _waits_for(file_id: str | InstrumentedAttribute[str]) -> ColumnElement[bool]:
    """Whether a job's row is one that has not ended and reads the file."""
    return and_(Job.status.not_in(ENDED), or_(*(Job.spec[name].as_string() == file_id for name in _INPUTS)))


def delete_expired(session: Session) -> Sequence[str]:
    """Delete the rows of files whose time is up, unless they are needed; returns the keys of their bytes.

    What is needed is left out by the query itself: files that stay for long must not keep the sweep from the others.
    """
    needed = or_(
        exists().where(FineTunedModel.adapter_file_id == File.id),
        exists().where(Job.project_id == File.project_id, _waits_for(File.id)),
    )
    expired = select(File).where(File.expires_at < db_now(), ~needed).order_by(File.id).limit(_SWEEP)
    # Asked again once its row is locked: a job that was submitted meanwhile has locked it too.
    files = [
        file for file in session.scalars(expired.with_for_update(skip_locked=True)) if not why_needed(session, file)
    ]
    session.execute(delete(File).where(File.id.in_([file.id for file in files])))
    return [file.storage_key for file in files]
