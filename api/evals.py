"""/v1/evals: what is judged, and by what; its runs are in ``api.eval_runs``."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from api.deps import CurrentProject, ReadSession, WriteSession
from api.eval_schemas import EvalDeleted, EvalObject, EvalRequest, EvalUpdate, data_source_config, eval_object
from api.json_body import StrictJsonRoute
from api.pagination import After, Order, Page, fetch_page, page_of
from core.errors import InvalidRequestError, NotFoundError
from models.base import db_now
from models.status import ENDED
from models.tables import Eval, EvalRun, Job

router = APIRouter(prefix="/v1/evals", tags=["evals"], route_class=StrictJsonRoute)


def get_eval(
    session: Session, project_id: str, eval_id: str, *, lock: Literal["share", "update"] | None = None
) -> Eval:
    """A project's eval. Raises NotFoundError for another project's as for none.

    ``lock``: "share" to use it in a new row, "update" to delete it; each waits for the other.
    """
    query = select(Eval).where(Eval.id == eval_id, Eval.project_id == project_id)
    if lock is not None:
        query = query.with_for_update(read=lock == "share")
    row = session.scalar(query)
    if row is None:
        raise NotFoundError(f"No eval '{eval_id:.80}' exists in this project.", code="not_found")
    return row


@router.post("", status_code=201)
def create_eval(body: EvalRequest, project_id: CurrentProject, session: WriteSession) -> EvalObject:
    """Define an evaluation."""
    row = Eval(
        project_id=project_id,
        name=body.name or f"{body.testing_criteria[0].name} eval",
        data_source_config=data_source_config(body.data_source_config),
        testing_criteria={"criteria": [criterion.model_dump(mode="json") for criterion in body.testing_criteria]},
        labels=body.metadata,
    )
    session.add(row)
    session.flush()
    return eval_object(row)


@router.get("")
def list_evals(
    project_id: CurrentProject,
    session: ReadSession,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Order = "asc",
    order_by: Literal["created_at", "updated_at"] = "created_at",
) -> Page[EvalObject]:
    """The project's evals."""
    query = select(Eval).where(Eval.project_id == project_id)
    by = func.coalesce(Eval.updated_at, Eval.created_at) if order_by == "updated_at" else None
    rows, has_more = fetch_page(session, query, Eval.id, after=after, limit=limit, order=order, by=by)
    return page_of([eval_object(row) for (row,) in rows], has_more)


@router.get("/{eval_id}")
def retrieve_eval(eval_id: str, project_id: CurrentProject, session: ReadSession) -> EvalObject:
    """One eval."""
    return eval_object(get_eval(session, project_id, eval_id))


@router.post("/{eval_id}")
def update_eval(eval_id: str, body: EvalUpdate, project_id: CurrentProject, session: WriteSession) -> EvalObject:
    """Rename an eval or replace its metadata; null removes the metadata."""
    row = get_eval(session, project_id, eval_id)
    if body.name is not None:
        row.name = body.name
    if "metadata" in body.model_fields_set:
        row.labels = body.metadata
    row.updated_at = session.scalar(select(db_now()))
    session.flush()
    return eval_object(row)


@router.delete("/{eval_id}")
def delete_eval(eval_id: str, project_id: CurrentProject, session: WriteSession) -> EvalDeleted:
    """Delete an eval with its runs and their items; files stay."""
    row = get_eval(session, project_id, eval_id, lock="update")
    runs = select(EvalRun.job_id).where(EvalRun.eval_id == row.id)
    busy = session.scalar(select(Job.id).where(Job.id.in_(runs), Job.status.not_in(ENDED)).limit(1))
    if busy is not None:
        raise InvalidRequestError(
            f"The run {busy} of this eval has not ended. Wait for it, or cancel it.", param="eval_id", code="run_active"
        )
    # A run goes with its job, and its items with the run.
    session.execute(delete(Job).where(Job.id.in_(runs)))
    session.execute(delete(Eval).where(Eval.id == row.id))
    return EvalDeleted(eval_id=row.id)
