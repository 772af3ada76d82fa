"""/v1/evals/{id}/runs: run an eval on a model, follow it, and read the scores item by item."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import TypeAdapter
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from api.deps import CurrentProject, OnceDep, Parts, PartsDep, ReadSession, WriteSession
from api.eval_schemas import EvalRequest
from api.evals import create_eval, get_eval
from api.file_access import require_input
from api.json_body import StrictJsonRoute
from api.pagination import After, Order, Page, fetch_page, page_of
from api.run_items import INLINE, Needs, items_file_of
from api.run_request import CompletionsSource, HoneRun, InlineSource, JsonlSource, RunRequest
from api.run_schemas import (
    STATUSES,
    Outcome,
    OutputItem,
    RunDeleted,
    RunObject,
    RunStatus,
    output_item,
    run_object,
)
from core.catalogue import find_base_model
from core.errors import InvalidRequestError, NotFoundError
from core.ids import new_id
from core.specs import Criterion, EvaluationSpec, SamplingSpec
from core.templates import item_paths, names_sample
from models import lifecycle
from models.access import UsableModel, find_model
from models.status import JobKind
from models.tables import Eval, EvalOutputItem, EvalRun, File, Job

router = APIRouter(prefix="/v1/evals/{eval_id}/runs", tags=["evals"], route_class=StrictJsonRoute)


def _get_run(session: Session, project_id: str, eval_id: str, run_id: str) -> tuple[EvalRun, Job]:
    """A run and its job. Raises NotFoundError for another project's as for none."""
    mine = (
        select(EvalRun, Job)
        .join(Job, Job.id == EvalRun.job_id)
        .join(Eval, Eval.id == EvalRun.eval_id)
        .where(EvalRun.id == run_id, Eval.id == eval_id, Eval.project_id == project_id)
    )
    found = session.execute(mine).first()
    if found is None:
        raise NotFoundError(
            f"No run '{run_id:.80}' of an eval '{eval_id:.80}' exists in this project.", code="not_found"
        )
    run, job = found
    return run, job


def _outcomes(session: Session, run_ids: Collection[str]) -> dict[str, Outcome]:
    """What each run has brought: two queries, whatever the number of runs."""
    counts: dict[str, dict[str, int]] = defaultdict(dict)
    counted = select(EvalOutputItem.run_id, EvalOutputItem.status, func.count())
    grouped = counted.where(EvalOutputItem.run_id.in_(run_ids)).group_by(EvalOutputItem.run_id, EvalOutputItem.status)
    for run_id, status, count in session.execute(grouped):
        counts[run_id][status] = count
    files: dict[str, list[str]] = defaultdict(list)
    produced = select(File.job_id, File.id).where(File.job_id.in_(run_ids)).order_by(File.id)
    for job_id, file_id in session.execute(produced):
        files[str(job_id)].append(file_id)
    return {run_id: Outcome(counts[run_id], files[run_id]) for run_id in run_ids}


def _on_the_wire(session: Session, request: Request, found: Iterable[tuple[EvalRun, Job]]) -> list[RunObject]:
    runs = list(found)
    outcomes = _outcomes(session, [run.id for run, _ in runs])
    base = str(request.base_url)
    return [run_object(run, job, outcomes[run.id], f"{base}v1/evals/{run.eval_id}/runs/{run.id}") for run, job in runs]


# --- Submit ----------------------------------------------------------------------------------------------------------


@router.post("", status_code=201)
def create_run(
    eval_id: str, body: RunRequest, request: Request, project_id: CurrentProject, parts: PartsDep, once: OnceDep
) -> RunObject:
    """Submit a run. Items that come in the request are stored as a file first, so that the job has all it needs."""
    once.look(parts.database)
    with parts.database.read() as session:
        criteria = _criteria(session, project_id, eval_id)
    with _items_of(parts, project_id, body, criteria) as items_file, parts.database.write() as session:
        once.begin(session)
        run, job = _submit(session, parts, project_id, eval_id, body, criteria, items_file)
        answer = _on_the_wire(session, request, [(run, job)])[0]
        once.keep(session, answer, status=201)
    return answer


def start_run(
    definition: EvalRequest | str, body: RunRequest, project_id: str, parts: Parts, *, items_name: str
) -> tuple[str, str]:
    """A run of an eval that is there, named by its id, or of a new one. The ids of eval and run.

    A new eval is made in the run's transaction: a run that is refused leaves none behind.
    """
    with parts.database.read() as session:
        criteria = _criteria(session, project_id, definition)
    with _items_of(parts, project_id, body, criteria, items_name) as items_file, parts.database.write() as session:
        eval_id = definition if isinstance(definition, str) else create_eval(definition, project_id, session).id
        run, _ = _submit(session, parts, project_id, eval_id, body, criteria, items_file)
        return eval_id, run.id


@contextmanager
def _items_of(
    parts: Parts, project_id: str, body: RunRequest, criteria: Iterable[Criterion], name: str = INLINE
) -> Iterator[File]:
    """The file of a run's items; one that is made for the run is taken back if the run does not come to be."""
    if isinstance(body.data_source, CompletionsSource):
        with parts.database.read() as session:
            _resolve_model(session, parts, project_id, body.data_source.model)  # before anything is stored
    items_file = items_file_of(parts, project_id, body, _needs(body, criteria), name)
    try:
        yield items_file
    except BaseException:
        if isinstance(body.data_source.source, InlineSource):
            _forget(parts, items_file)
        raise


_CRITERIA: TypeAdapter[tuple[Criterion, ...]] = TypeAdapter(tuple[Criterion, ...])


def _criteria(session: Session, project_id: str, definition: EvalRequest | str) -> tuple[Criterion, ...]:
    if isinstance(definition, str):
        return _CRITERIA.validate_python(get_eval(session, project_id, definition).testing_criteria["criteria"])
    return _CRITERIA.validate_python([criterion.model_dump() for criterion in definition.testing_criteria])


def _needs(body: RunRequest, criteria: Iterable[Criterion]) -> Needs:
    """What the templates of the run and of its eval need of each item."""
    graded = [text for criterion in criteria for text in (criterion.input, criterion.reference)]
    if isinstance(body.data_source, JsonlSource):
        return Needs(item_paths(graded), sample=names_sample(graded))
    messages = [turn.to_spec().content for turn in body.data_source.input_messages.template]
    return Needs(item_paths([*messages, *graded]), sample=False)


def _resolve_model(session: Session, parts: Parts, project_id: str, model_id: str) -> tuple[str, UsableModel | None]:
    """The base's name, and the fine-tune when ``model_id`` is one. Raises InvalidRequestError."""
    tuned = find_model(session, project_id, model_id)
    base = tuned.base_model if tuned else model_id
    try:
        find_base_model(parts.catalogue, base)
    except InvalidRequestError as error:
        message = f"{error.message} Or a fine-tuned model of this project."
        raise InvalidRequestError(message, param="data_source.model", code=error.code) from None
    return base, tuned


def _submit(
    session: Session,
    parts: Parts,
    project_id: str,
    eval_id: str,
    body: RunRequest,
    criteria: tuple[Criterion, ...],
    items_file: File,
) -> tuple[EvalRun, Job]:
    get_eval(session, project_id, eval_id, lock="share")
    require_input(session, project_id, items_file.id, purpose="evals", param="data_source.source.id")
    spec = _spec(session, parts, project_id, body, criteria, items_file)
    run_id = new_id("evalrun_")
    job = lifecycle.submit(
        session,
        Job(
            id=run_id,
            project_id=project_id,
            kind=JobKind.EVALUATION,
            model=spec.model,
            spec=spec.model_dump(mode="json"),
            labels=body.metadata,
        ),
    )
    run = EvalRun(
        id=run_id,
        eval_id=eval_id,
        job_id=job.id,
        name=body.name or f"{spec.model[:200] or 'jsonl'} run",
        data_source=_data_source(body, items_file),
        labels=body.metadata,
    )
    session.add(run)
    session.flush()
    return run, job


def _spec(
    session: Session,
    parts: Parts,
    project_id: str,
    body: RunRequest,
    criteria: tuple[Criterion, ...],
    items_file: File,
) -> EvaluationSpec:
    source = body.data_source
    if isinstance(source, JsonlSource):
        return EvaluationSpec(source="jsonl", items_file=items_file.id, criteria=criteria)
    base, tuned = _resolve_model(session, parts, project_id, source.model)
    asked = body.hone or HoneRun()
    return EvaluationSpec(
        model=source.model,
        base_model=base,
        items_file=items_file.id,
        messages=tuple(turn.to_spec() for turn in source.input_messages.template),
        criteria=criteria,
        sampling=source.sampling_params.to_spec() if source.sampling_params else SamplingSpec(),
        prompt_template=tuned.prompt_template if tuned else "auto",
        compare_base=asked.compare_base,
        stop_at_fence=asked.stop_at_fence,
    )


def _data_source(body: RunRequest, items_file: File) -> dict[str, Any]:
    """The data source as it is answered: inline items are named by their file, or a list of runs could be 400 MB."""
    given = body.data_source.model_dump(mode="json", exclude_none=True)
    return {**given, "source": {"type": "file_id", "id": items_file.id}}


def _forget(parts: Parts, file: File) -> None:
    """Take back a file that was made for a run that did not come to be."""
    with parts.database.write() as session:
        session.execute(delete(File).where(File.id == file.id))
    parts.storage.delete(file.storage_key)


# --- Look, cancel, delete --------------------------------------------------------------------------------------------


@router.get("")
def list_runs(
    eval_id: str,
    request: Request,
    project_id: CurrentProject,
    session: ReadSession,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Order = "asc",
    status: RunStatus | None = None,
) -> Page[RunObject]:
    """The runs of an eval."""
    row = get_eval(session, project_id, eval_id)
    query = select(EvalRun, Job).join(Job, Job.id == EvalRun.job_id).where(EvalRun.eval_id == row.id)
    if status is not None:
        query = query.where(Job.status.in_([theirs for theirs, ours in STATUSES.items() if ours == status]))
    rows, has_more = fetch_page(session, query, EvalRun.id, after=after, limit=limit, order=order)
    return page_of(_on_the_wire(session, request, rows), has_more)


@router.get("/{run_id}")
def retrieve_run(
    eval_id: str, run_id: str, request: Request, project_id: CurrentProject, session: ReadSession
) -> RunObject:
    """One run."""
    return _on_the_wire(session, request, [_get_run(session, project_id, eval_id, run_id)])[0]


# Newer clients post to …/cancel, older ones (and OpenAI's specification) to the run itself.
@router.post("/{run_id}/cancel")
@router.post("/{run_id}")
def cancel_run(
    eval_id: str, run_id: str, request: Request, project_id: CurrentProject, session: WriteSession
) -> RunObject:
    """Cancel: at once while it waits; a running one is told to stop and ends within seconds."""
    _, job = _get_run(session, project_id, eval_id, run_id)
    lifecycle.cancel(session, job)
    return _on_the_wire(session, request, [_get_run(session, project_id, eval_id, run_id)])[0]


@router.delete("/{run_id}")
def delete_run(eval_id: str, run_id: str, project_id: CurrentProject, session: WriteSession) -> RunDeleted:
    """Delete a run that has ended, with its items; files stay."""
    _, job = _get_run(session, project_id, eval_id, run_id)
    session.refresh(job, with_for_update=True)
    if not lifecycle.has_ended(job):
        raise InvalidRequestError(
            f"The run {run_id} has not ended. Wait for it, or cancel it.", param="run_id", code="run_active"
        )
    session.execute(delete(Job).where(Job.id == job.id))  # the run and its items go with it
    return RunDeleted(run_id=run_id)


# --- Items -----------------------------------------------------------------------------------------------------------


@router.get("/{run_id}/output_items")
def list_output_items(
    eval_id: str,
    run_id: str,
    project_id: CurrentProject,
    session: ReadSession,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Order = "asc",
    status: Literal["pass", "fail"] | None = None,
) -> Page[OutputItem]:
    """The items of a run that has completed, in the order of the file."""
    run, job = _get_run(session, project_id, eval_id, run_id)
    query = select(EvalOutputItem).where(EvalOutputItem.run_id == run.id)
    if status is not None:
        query = query.where(EvalOutputItem.status == status)
    rows, has_more = fetch_page(session, query, EvalOutputItem.id, after=after, limit=limit, order=order)
    return page_of([output_item(item, run, job) for (item,) in rows], has_more)


@router.get("/{run_id}/output_items/{item_id}")
def retrieve_output_item(
    eval_id: str, run_id: str, item_id: str, project_id: CurrentProject, session: ReadSession
) -> OutputItem:
    """One item of a run."""
    run, job = _get_run(session, project_id, eval_id, run_id)
    item = session.scalar(select(EvalOutputItem).where(EvalOutputItem.id == item_id, EvalOutputItem.run_id == run.id))
    if item is None:
        raise NotFoundError(f"No output item '{item_id:.80}' exists in this run.", code="not_found")
    return output_item(item, run, job)
