"""Jobs: the list, one job as it happens, and what can be asked of it."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from sqlalchemy import select
from sqlalchemy.orm import Session

from api import job_stream, jobs
from api.dashboard.page import PageRoute, ViewerDep, go_to, page
from api.dashboard.scores import criteria_of
from api.dashboard.settings_table import settings_of
from api.deps import CatalogueDep, PartsDep, ReadSession, StorageDep
from api.job_schemas import FineTuningJob, fine_tuning_job
from api.pagination import After, fetch_page
from api.run_schemas import STATUSES
from api.schemas import FileObject, file_object
from core.catalogue import Catalogue, HubModel
from models import lifecycle, waiting_line
from models.status import ENDED, JobKind, JobStatus
from models.tables import EvalRun, File, Job, JobEvent

router = APIRouter(route_class=PageRoute)

#: Jobs on a page of the list.
_A_PAGE = 20
#: Events on a job's page; few jobs have more.
_EVENTS = 100
#: Points of a chart: about two for each pixel of its width.
POINTS = 2000

Shown = Literal["all", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
SHOWN: tuple[str, ...] = get_args(Shown)


@dataclass(frozen=True)
class Row:
    """A job in a list: its name is the suffix that it was given, or the model's."""

    job: FineTuningJob
    name: str
    file: str
    place: int | None


def name_of(job: FineTuningJob, suffix: str | None) -> str:
    """What people call a job by."""
    return suffix or job.model.rsplit("/", 1)[-1]


def filenames(session: Session, project_id: str, ids: Collection[str]) -> dict[str, str]:
    """The names of a project's files by their ids; of deleted ones, none."""
    found = session.execute(select(File.id, File.filename).where(File.id.in_(ids), File.project_id == project_id))
    return {str(file_id): str(name) for file_id, name in found}


def rows_of(session: Session, found: Collection[Job]) -> list[Row]:
    """Jobs as rows of a list, in four queries whatever their number."""
    files = jobs.result_files(session, [job.id for job in found])
    waiting = waiting_line.places(session, [job.id for job in found if job.status == JobStatus.QUEUED])
    wire = [(fine_tuning_job(job, files[job.id]), job) for job in found]
    names = filenames(session, found[0].project_id, [job.training_file for job, _ in wire]) if found else {}  # type: ignore[index]
    return [
        Row(job, name_of(job, row.spec.get("suffix")), names.get(job.training_file, ""), waiting.get(job.id))
        for job, row in wire
    ]


@router.get("/")
@router.get("/jobs")
@router.get("/jobs/table")
def list_page(
    request: Request, viewer: ViewerDep, session: ReadSession, show: Shown = "all", after: After = None
) -> Response:
    """The jobs, newest first; ``/jobs/table`` is the list alone, which a page that is open asks for."""
    query = select(Job).where(Job.project_id == viewer.project_id, Job.kind == JobKind.FINE_TUNE)
    if show == "queued":
        query = query.where(Job.status.in_((JobStatus.VALIDATING_FILES, JobStatus.QUEUED)))
    elif show != "all":
        query = query.where(Job.status == JobStatus(show))
    found, more = fetch_page(session, query, Job.id, after=after, limit=_A_PAGE, order="desc")
    rows = rows_of(session, [job for (job,) in found])
    template = "jobs_table.html" if request.url.path == "/jobs/table" else "jobs.html"
    return page(request, template, rows=rows, more=more, show=show, after=after, shown=SHOWN)


def _get(session: Session, viewer: ViewerDep, job_id: str) -> Job:
    return lifecycle.get_job(session, viewer.project_id, job_id, JobKind.FINE_TUNE)


def _head(session: Session, job: Job) -> dict[str, Any]:
    [row] = rows_of(session, [job])
    asked = "Cancelling" if job.cancel_requested_at else "Pausing" if job.pause_requested_at else None
    return {"row": row, "job": row.job, "ended": job.status in ENDED, "asked": asked}


@router.get("/jobs/{job_id}")
def job_page(
    job_id: str, request: Request, viewer: ViewerDep, session: ReadSession, catalogue: CatalogueDep
) -> Response:
    """One job: its curves as they grow, what happened, its settings, and what came out."""
    job = _get(session, viewer, job_id)
    context = _head(session, job)
    wire = context["job"]
    assert isinstance(wire, FineTuningJob)
    return page(
        request,
        "job.html",
        **context,
        **_events(session, job),
        checkpoints=jobs.list_checkpoints(job.id, viewer.project_id, session, limit=100).data,
        **_came_out(session, viewer, job, wire, catalogue),
        settings=settings_of(job, wire),
        spec=job.spec,
        files=filenames(session, viewer.project_id, [wire.training_file, wire.validation_file or ""]),
        points=POINTS,
    )


def _events(session: Session, job: Job) -> dict[str, Any]:
    """Events but those that only repeat the curves."""
    query = select(JobEvent).where(JobEvent.job_id == job.id, JobEvent.type != "metrics")
    events, more = fetch_page(session, query, JobEvent.id, after=None, limit=_EVENTS, order="desc")
    return {"events": [event for (event,) in events], "more_events": more, "job_id": job.id}


def _came_out(
    session: Session, viewer: ViewerDep, job: Job, wire: FineTuningJob, catalogue: Catalogue
) -> dict[str, Any]:
    """Files, evaluations of the model, and where its base comes from."""
    produced = session.scalars(select(File).where(File.id.in_(wire.result_files)).order_by(File.id))
    results: list[FileObject] = [file_object(file) for file in produced]
    found = evaluations_of(session, viewer.project_id, [job.fine_tuned_model]) if job.fine_tuned_model else []
    runs = [(run, STATUSES[JobStatus(ran.status)], next(iter(criteria_of(ran.report)), None)) for run, ran in found]
    entry = catalogue.get(job.model)
    base_repo = entry.repo if isinstance(entry, HubModel) else None
    return {"results": results, "runs": runs, "base_repo": base_repo}


def evaluations_of(
    session: Session, project_id: str, models: Collection[str], limit: int = 20
) -> list[tuple[EvalRun, Job]]:
    """The newest evaluations of these models, with their jobs; the newest first."""
    query = (
        select(EvalRun, Job)
        .join(Job, Job.id == EvalRun.job_id)
        .where(Job.project_id == project_id, Job.kind == JobKind.EVALUATION, Job.model.in_(models))
        .order_by(Job.id.desc())
        .limit(limit)
    )
    return [(run, job) for run, job in session.execute(query)]


# --- As it happens ---------------------------------------------------------------------------------------------------


@router.get("/jobs/{job_id}/head")
def job_head(job_id: str, request: Request, viewer: ViewerDep, session: ReadSession) -> Response:
    """The top of a job's page: status, progress, and what can be asked of it."""
    return page(request, "job_head.html", **_head(session, _get(session, viewer, job_id)))


@router.get("/jobs/{job_id}/events")
def job_events_part(job_id: str, request: Request, viewer: ViewerDep, session: ReadSession) -> Response:
    """What happened."""
    return page(request, "job_events.html", **_events(session, _get(session, viewer, job_id)))


@router.get("/jobs/{job_id}/checkpoints")
def job_checkpoints_part(job_id: str, request: Request, viewer: ViewerDep, session: ReadSession) -> Response:
    """The checkpoints."""
    checkpoints = jobs.list_checkpoints(job_id, viewer.project_id, session, limit=100).data
    return page(request, "job_checkpoints.html", checkpoints=checkpoints)


@router.get("/jobs/{job_id}/checkpoints/{checkpoint_id}")
def checkpoint(
    job_id: str, checkpoint_id: str, request: Request, viewer: ViewerDep, session: ReadSession, storage: StorageDep
) -> Response:
    """Download a checkpoint."""
    return jobs.download_checkpoint(job_id, checkpoint_id, request, viewer.project_id, session, storage)


@router.get("/jobs/{job_id}/metrics.json")
def job_metrics(
    job_id: str,
    viewer: ViewerDep,
    session: ReadSession,
    points: Annotated[int, Query(ge=100, le=10_000)] = POINTS,
) -> Response:
    """The curves, and the id from which the stream goes on."""
    job = _get(session, viewer, job_id)
    told = job_stream.position(session, job)  # first: what comes in between is told twice rather than never
    steps = jobs.list_metrics(job_id, viewer.project_id, session, points=points)
    content = {"steps": [step.model_dump() for step in steps.data], "told": str(told)}
    return JSONResponse(content, headers={"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"})


@router.get("/jobs/{job_id}/stream")
def job_events(
    job_id: str, request: Request, viewer: ViewerDep, parts: PartsDep, after: str | None = None
) -> StreamingResponse:
    """The stream of ``/v1/fine_tuning/jobs/{id}/events/stream``, for a browser with a session."""
    return jobs.stream_events(job_id, request, viewer.project_id, parts, after, request.headers.get("last-event-id"))


# --- What can be asked ----------------------------------------------------------------------------------------------


@router.post("/jobs/{job_id}/cancel")
def cancel(job_id: str, viewer: ViewerDep, parts: PartsDep) -> Response:
    """Cancel a job."""
    with parts.database.write() as session:
        jobs.cancel_job(job_id, viewer.project_id, session)
    return go_to(f"/jobs/{job_id}")


@router.post("/jobs/{job_id}/pause")
def pause(job_id: str, viewer: ViewerDep, parts: PartsDep) -> Response:
    """Put a job aside."""
    with parts.database.write() as session:
        jobs.pause_job(job_id, viewer.project_id, session)
    return go_to(f"/jobs/{job_id}")


@router.post("/jobs/{job_id}/resume")
def resume(job_id: str, viewer: ViewerDep, parts: PartsDep) -> Response:
    """Queue a paused job again."""
    with parts.database.write() as session:
        jobs.resume_job(job_id, viewer.project_id, session)
    return go_to(f"/jobs/{job_id}")


@router.get("/jobs/{job_id}/adapter")
def adapter(job_id: str, request: Request, viewer: ViewerDep, session: ReadSession, storage: StorageDep) -> Response:
    """Download the adapter."""
    return jobs.download_adapter(job_id, request, viewer.project_id, session, storage)
