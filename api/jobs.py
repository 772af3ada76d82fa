"""/v1/fine_tuning/jobs: submit, look at, cancel, pause and resume, and fetch what came out."""

import re
from collections import defaultdict
from collections.abc import Collection
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from api import job_stream
from api.deps import CurrentProject, Parts, PartsDep, ReadSession, StorageDep, WriteSession
from api.downloads import answer_stored
from api.estimates import refuse_unfit
from api.file_access import require_input
from api.gpus import require_gpus
from api.job_schemas import (
    CheckpointObject,
    FineTuneRequest,
    FineTuningJob,
    JobEventObject,
    StepList,
    checkpoint_object,
    fine_tuning_job,
    job_event,
    step_object,
)
from api.json_body import StrictJsonRoute
from api.pagination import After, Page, fetch_page, page_of
from api.thinning import thinned
from core.catalogue import find_base_model
from core.errors import InvalidRequestError, NotFoundError
from core.ids import new_id
from core.specs import FineTuneSpec
from models import lifecycle
from models.access import find_model, model_name
from models.status import JobKind, JobStatus
from models.tables import Checkpoint, File, Job, JobEvent, Project, StepMetric

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"], route_class=StrictJsonRoute)

RESULTS = "fine-tune-results"
ADAPTER = "adapter.zip"
_METADATA = re.compile(r"metadata\[(.+)\]")


def _get_job(session: Session, project_id: str, job_id: str) -> Job:
    return lifecycle.get_job(session, project_id, job_id, JobKind.FINE_TUNE)


def result_files(session: Session, job_ids: Collection[str]) -> dict[str, list[str]]:
    """The ids of the files that each job has produced, in their order."""
    produced = select(File.job_id, File.id).where(File.job_id.in_(job_ids), File.purpose == RESULTS).order_by(File.id)
    found: dict[str, list[str]] = defaultdict(list)
    for job_id, file_id in session.execute(produced):
        found[str(job_id)].append(file_id)
    return found


def _on_the_wire(session: Session, job: Job) -> FineTuningJob:
    # Result files appear with this status, in one transaction; no other needs the query.
    files = result_files(session, [job.id])[job.id] if job.status == JobStatus.SUCCEEDED else []
    return fine_tuning_job(job, files)


@router.post("")
def create_job(
    body: FineTuneRequest, project_id: CurrentProject, session: WriteSession, parts: PartsDep
) -> FineTuningJob:
    """Submit a fine-tune. When this answers 200, the job is in the database and will run."""
    _require_base(session, parts, project_id, body.model)
    for param in ("training_file", "validation_file"):
        if file_id := getattr(body, param):
            file = require_input(session, project_id, file_id, purpose="fine-tune", param=param)
            _require_format(file, body, param)
    spec = body.spec()
    _require_key(parts, spec)
    require_gpus(session, spec)
    refuse_unfit(session, parts, project_id, spec)
    job = Job(
        id=new_id("ftjob-"),
        project_id=project_id,
        kind=JobKind.FINE_TUNE,
        model=spec.model,
        spec=spec.model_dump(mode="json"),
        labels=body.metadata,
        gpus=spec.hone.training.gpus,
    )
    return _on_the_wire(session, lifecycle.submit(session, job))


def _require_base(session: Session, parts: Parts, project_id: str, model: str) -> None:
    """Raise InvalidRequestError unless the model is a base of the catalogue; of a fine-tune it names the base."""
    if model not in parts.catalogue and (tuned := find_model(session, project_id, model)) is not None:
        raise InvalidRequestError(
            f"'{model:.200}' is a fine-tune, and this server trains base models only. Give '{tuned.base_model}', "
            "and the data of both trainings in one file.",
            param="model",
            code="not_a_base_model",
        )
    find_base_model(parts.catalogue, model)


def _require_key(parts: Parts, spec: FineTuneSpec) -> None:
    """Raise InvalidRequestError when the job is to tell W&B and the operator has given no key for it."""
    if spec.wandb is not None and parts.settings.wandb_key is None:
        raise InvalidRequestError(
            "'integrations': this server has no key for Weights & Biases. Leave the field out (metrics are in the "
            "job's events), or have the operator set HONE_WANDB_API_KEY.",
            param="integrations",
            code="wandb_not_configured",
        )


def _require_format(file: File, body: FineTuneRequest, param: str) -> None:
    """Raise InvalidRequestError when a file has pairs of answers and the method wants single ones, or the other way."""
    method = body.method.type if body.method else "supervised"
    found = (file.report or {}).get("format")
    if found is not None and (found == "preference") != (method == "dpo"):
        wanted = "'dpo'" if found == "preference" else "'supervised'"
        raise InvalidRequestError(
            f"'{param}': the format of file {file.id} is '{found}', which is for the method {wanted}.",
            param=param,
            code="wrong_format",
        )


@router.get("")
def list_jobs(
    request: Request,
    project_id: CurrentProject,
    session: ReadSession,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> Page[FineTuningJob]:
    """The project's fine-tunes, newest first; `metadata[key]=value` filters, `metadata=null` finds those without."""
    query = select(Job).where(Job.project_id == project_id, Job.kind == JobKind.FINE_TUNE)
    query = _with_metadata(query, request)
    rows, has_more = fetch_page(session, query, Job.id, after=after, limit=limit, order="desc")
    files = result_files(session, [job.id for (job,) in rows])
    return page_of([fine_tuning_job(job, files[job.id]) for (job,) in rows], has_more)


def _with_metadata(query: Select[Job], request: Request) -> Select[Job]:
    for name, value in request.query_params.multi_items():
        if name == "metadata" and value == "null":
            query = query.where(Job.labels.is_(None))
        elif asked := _METADATA.fullmatch(name):
            key = asked[1]
            if '"' in key or "\\" in key:  # SQLite's JSON paths can't quote them
                raise InvalidRequestError(
                    f"Jobs can't be filtered by a key with \" or \\: '{key:.64}'.", param=name[:80]
                )
            query = query.where(Job.labels[key].as_string() == value)
    return query


@router.get("/{job_id}")
def retrieve_job(job_id: str, project_id: CurrentProject, session: ReadSession) -> FineTuningJob:
    """One fine-tune."""
    return _on_the_wire(session, _get_job(session, project_id, job_id))


@router.post("/{job_id}/cancel")
def cancel_job(job_id: str, project_id: CurrentProject, session: WriteSession) -> FineTuningJob:
    """Cancel: at once while it waits; a running one is told to stop and ends within seconds."""
    job = _get_job(session, project_id, job_id)
    lifecycle.cancel(session, job)
    return _on_the_wire(session, _get_job(session, project_id, job_id))


@router.post("/{job_id}/pause")
def pause_job(job_id: str, project_id: CurrentProject, session: WriteSession) -> FineTuningJob:
    """Put aside: at once while it waits; a running one saves a checkpoint, leaves its GPU and is then `paused`."""
    lifecycle.pause(session, _get_job(session, project_id, job_id))
    return _on_the_wire(session, _get_job(session, project_id, job_id))


@router.post("/{job_id}/resume")
def resume_job(job_id: str, project_id: CurrentProject, session: WriteSession) -> FineTuningJob:
    """Queue a paused job again; it goes on from its last checkpoint."""
    lifecycle.resume(session, _get_job(session, project_id, job_id))
    return _on_the_wire(session, _get_job(session, project_id, job_id))


@router.get("/{job_id}/events")
def list_events(
    job_id: str,
    project_id: CurrentProject,
    session: ReadSession,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> Page[JobEventObject]:
    """What happened to a job, newest first."""
    job = _get_job(session, project_id, job_id)
    query = select(JobEvent).where(JobEvent.job_id == job.id)
    rows, has_more = fetch_page(session, query, JobEvent.id, after=after, limit=limit, order="desc")
    return page_of([job_event(event) for (event,) in rows], has_more)


@router.get("/{job_id}/events/stream", response_class=StreamingResponse)
def stream_events(
    job_id: str,
    request: Request,
    project_id: CurrentProject,
    parts: PartsDep,
    after: Annotated[str | None, Query(max_length=128)] = None,
    last_event_id: Annotated[str | None, Header()] = None,
) -> StreamingResponse:
    """A job as it happens, as server-sent events until it has ended: `job`, `event`, `step`, `reset`, `end`.

    A reader that comes back with its last message's id, in `Last-Event-ID` or in `after`, misses nothing. `reset`:
    another attempt goes on from an earlier step; read the metrics again.
    """
    with parts.database.read() as session:
        _get_job(session, project_id, job_id)
    told = job_stream.read_told(last_event_id or after)
    messages = job_stream.stream(parts.database, job_id, told, request.app.state.stopping)
    return StreamingResponse(messages, media_type="text/event-stream", headers=job_stream.HEADERS)


@router.get("/{job_id}/checkpoints")
def list_checkpoints(
    job_id: str,
    project_id: CurrentProject,
    session: ReadSession,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 10,
) -> Page[CheckpointObject]:
    """A job's checkpoints, newest first."""
    job = _get_job(session, project_id, job_id)
    query = select(Checkpoint).where(Checkpoint.job_id == job.id)
    rows, has_more = fetch_page(session, query, Checkpoint.id, after=after, limit=limit, order="desc")
    model = model_name(job, session.get_one(Project, project_id).name)
    return page_of([checkpoint_object(checkpoint, model) for (checkpoint,) in rows], has_more)


@router.get("/{job_id}/checkpoints/{checkpoint_id}/adapter", response_class=Response)
def download_checkpoint(
    job_id: str,
    checkpoint_id: str,
    request: Request,
    project_id: CurrentProject,
    session: ReadSession,
    storage: StorageDep,
) -> Response:
    """A checkpoint as a zip: its adapter, for `peft`, beside the optimizer and what else a run goes on from."""
    job = _get_job(session, project_id, job_id)
    row = session.scalars(select(Checkpoint).filter_by(id=checkpoint_id, job_id=job.id)).first()
    if row is None:
        raise NotFoundError(f"The job {job.id} has no checkpoint '{checkpoint_id:.80}'.", code="not_found")
    file = File(
        id=row.id,
        filename=f"checkpoint-{row.step}.zip",
        bytes=row.bytes,
        sha256=row.sha256,
        storage_key=row.storage_key,
    )
    return answer_stored(storage, file, request.headers)


@router.get("/{job_id}/metrics")
def list_metrics(
    job_id: str,
    project_id: CurrentProject,
    session: ReadSession,
    after_step: Annotated[int, Query(ge=-1, le=2_147_483_647)] = -1,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    points: Annotated[int | None, Query(ge=100, le=10_000)] = None,
) -> StepList:
    """The figures of each step, in the order of steps; `points` thins them so that no curve loses an extreme."""
    job = _get_job(session, project_id, job_id)
    if points is not None:
        return StepList(data=[step_object(row) for row in thinned(session, job.id, points)], has_more=False)
    query = select(StepMetric).where(StepMetric.job_id == job.id, StepMetric.step > after_step)
    rows = session.scalars(query.order_by(StepMetric.step).limit(limit + 1)).all()
    return StepList(data=[step_object(row) for row in rows[:limit]], has_more=len(rows) > limit)


@router.get("/{job_id}/adapter", response_class=Response)
def download_adapter(
    job_id: str, request: Request, project_id: CurrentProject, session: ReadSession, storage: StorageDep
) -> Response:
    """The adapter of a fine-tune that has succeeded, as a zip."""
    job = _get_job(session, project_id, job_id)
    if job.status != JobStatus.SUCCEEDED:
        raise InvalidRequestError(
            f"Job {job.id} has no adapter: its status is '{job.status}'. Only a job that succeeded has one.",
            param="fine_tuning_job_id",
            code="job_not_succeeded",
        )
    produced: dict[str, Any] = {"job_id": job.id, "purpose": RESULTS, "filename": ADAPTER}
    file = session.scalars(select(File).filter_by(**produced)).first()
    if file is None:
        raise NotFoundError(f"The adapter of job {job.id} has been deleted.", code="not_found")
    return answer_stored(storage, file, request.headers)
