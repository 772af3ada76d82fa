"""Evaluations: runs with their scores, base beside tuned, and each answer beside the other."""

from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import select

from api import eval_runs
from api.dashboard.eval_form import can_be_repeated
from api.dashboard.page import HEADERS, PageRoute, ViewerDep, go_to, page
from api.dashboard.scores import Criterion, criteria_of
from api.deps import PartsDep, ReadSession
from api.evals import get_eval
from api.pagination import After, fetch_page
from api.run_schemas import STATUSES
from models.status import JobKind, JobStatus
from models.tables import Eval, EvalRun, File, Job

router = APIRouter(route_class=PageRoute)

_A_PAGE = 20
_SAMPLES = 5


@dataclass(frozen=True)
class Row:
    """A run in the list."""

    run: EvalRun
    job: Job
    eval_name: str
    status: str
    criterion: Criterion | None


@router.get("/evals")
@router.get("/evals/table")
def list_page(request: Request, viewer: ViewerDep, session: ReadSession, after: After = None) -> Response:
    """The runs of all evals, newest first."""
    query = (
        select(EvalRun, Job, Eval.name)
        .join(Job, Job.id == EvalRun.job_id)
        .join(Eval, Eval.id == EvalRun.eval_id)
        .where(Job.project_id == viewer.project_id, Job.kind == JobKind.EVALUATION)
    )
    found, more = fetch_page(session, query, Job.id, after=after, limit=_A_PAGE, order="desc")
    rows = [
        Row(run, job, name, STATUSES[JobStatus(job.status)], next(iter(criteria_of(job.report)), None))
        for run, job, name in found
    ]
    template = "evals_table.html" if request.url.path.endswith("/table") else "evals.html"
    return page(request, template, rows=rows, more=more, after=after)


@router.get("/evals/{eval_id}/runs/{run_id}")
@router.get("/evals/{eval_id}/runs/{run_id}/head")
def run_page(
    eval_id: str,
    run_id: str,
    request: Request,
    viewer: ViewerDep,
    session: ReadSession,
    after: After = None,
    status: Annotated[Literal["all", "pass", "fail"], Query()] = "all",
) -> Response:
    """One run: scores, counts, and its answers, some at a time."""
    run = eval_runs.retrieve_run(eval_id, run_id, request, viewer.project_id, session)
    ended = run.status not in ("queued", "in_progress")
    repeatable = can_be_repeated(run.data_source)
    if request.url.path.endswith("/head"):
        if ended:
            return Response(status_code=204, headers={**HEADERS, "HX-Refresh": "true"})
        return page(request, "run_head.html", run=run, ended=ended, repeatable=repeatable)
    items = eval_runs.list_output_items(
        eval_id,
        run_id,
        viewer.project_id,
        session,
        after=after,
        limit=_SAMPLES,
        status=None if status == "all" else status,
    )
    files = session.scalars(select(File).where(File.id.in_(run.hone.result_files)).order_by(File.id)).all()
    return page(
        request,
        "run.html",
        run=run,
        ended=ended,
        repeatable=repeatable,
        eval=get_eval(session, viewer.project_id, eval_id),
        criteria=criteria_of(run.hone.scores),
        items=items,
        files=files,
        status=status,
        after=after,
    )


@router.post("/evals/{eval_id}/runs/{run_id}/cancel")
def cancel(eval_id: str, run_id: str, request: Request, viewer: ViewerDep, parts: PartsDep) -> Response:
    """Cancel a run."""
    with parts.database.write() as session:
        eval_runs.cancel_run(eval_id, run_id, request, viewer.project_id, session)
    return go_to(f"/evals/{eval_id}/runs/{run_id}")
