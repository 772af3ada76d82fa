"""POST /v1/fine_tuning/jobs/estimate, and the refusal of jobs that no worker could run."""

import statistics
from collections import Counter, defaultdict
from itertools import islice
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ValidationError
from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from api.base_cards import BaseCards
from api.deps import CurrentProject, Parts, PartsDep
from api.file_access import require_input
from api.job_schemas import FineTuneRequest
from api.json_body import StrictJsonRoute
from api.preflight import asked_of
from core.base_card import CardTokenizer
from core.card_making import NoCardError
from core.catalogue import find_base_model
from core.dataset import DatasetReport, Sample, numbered_samples
from core.errors import InvalidRequestError, TrainingError
from core.estimate import Data, Worker, estimate, from_characters
from core.estimate_time import Measured, Method, measured_job
from core.preflight import Profile, conversations, longest_first
from core.prompts import encode_sample
from core.resolve import Resolved
from core.specs import FineTuneSpec
from models.base import db_now
from models.status import JobKind, JobStatus
from models.tables import File, Job, Preflight, StepMetric
from models.tables import Worker as WorkerRow

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"], route_class=StrictJsonRoute)

#: Where a file has no preflight yet, so many of its first samples stand for all; some 0.3 s of tokenizing.
_SAMPLES = 400
#: A worker that was not seen for so many seconds is told as gone; its machine still counts.
_ALIVE_SECONDS = 120
#: Finished jobs that speeds are taken from, of each way to train; and how many are looked at for them.
_JOBS, _LOOKED_AT = 5, 20
#: Steps that are left out at a job's start: kernels are compiled in the first.
_WARM_UP = 2


class Estimate(BaseModel):
    """What a job would take; nothing is written."""

    object: str = "fine_tuning.job.estimate"
    model: str
    data: dict[str, Any]
    steps: int
    trained_tokens: int
    hyperparameters: dict[str, Any]
    hone: dict[str, Any]
    parameters: dict[str, Any] | None
    memory: dict[str, Any] | None
    devices: list[dict[str, Any]]
    fits: bool | None
    nearest: dict[str, Any] | None
    time: dict[str, Any]
    warnings: list[str]


@router.post("/estimate")
def estimate_job(body: FineTuneRequest, project_id: CurrentProject, parts: PartsDep) -> Estimate:
    """Steps, tokens, memory by part, where it fits and how long it takes, for the body that would create the job."""
    find_base_model(parts.catalogue, body.model)
    spec = body.spec()
    with parts.database.read() as session:
        file = require_input(session, project_id, spec.training_file, purpose="fine-tune", param="training_file")
        validation = _validation(session, project_id, spec)
        row = _preflight(session, parts.cards, file, spec)
        workers, measured = known_workers(session), measured_jobs(session, spec.model, spec.hone.training.gpus)
        loaded = base_loaded(session, spec, parts.settings.warm_seconds)
    try:
        tokenizer: CardTokenizer | None = parts.cards.get(spec.model)
    except NoCardError:
        tokenizer = None
    data = read_data(parts, file, row, tokenizer, spec, validation)
    card = tokenizer.card if tokenizer else None
    return Estimate(**estimate(spec, data, card, workers, measured, base_loaded=loaded))


def refuse_unfit(session: Session, parts: Parts, project_id: str, spec: FineTuneSpec) -> None:
    """Raise InvalidRequestError when no worker that is known of could run the job, with what would make it fit.

    Where nothing is known of workers or the base model, nothing is refused: the worker will plan again.
    """
    workers = known_workers(session)
    if not workers or (tokenizer := parts.cards.find(spec.model)) is None:
        return
    if _surely_fits(spec, tokenizer, workers):
        return
    file = require_input(session, project_id, spec.training_file, purpose="fine-tune", param="training_file")
    row = _preflight(session, parts.cards, file, spec)
    found = estimate(spec, read_data(parts, file, row, tokenizer, spec, None), tokenizer.card, workers, {})
    if found["fits"] is False:
        changes = found["nearest"]["changes"]
        error = InvalidRequestError(
            found["nearest"]["message"], param=next(iter(changes), "model"), code="does_not_fit"
        )
        error.details = {"estimate": found}
        raise error


def _surely_fits(spec: FineTuneSpec, tokenizer: CardTokenizer, workers: list[Worker]) -> bool:
    """Whether even samples of the greatest length would fit, which spares a look into the file."""
    asked, context = spec.hone.data.max_seq_length, tokenizer.card.config.get("max_position_embeddings", 2048)
    longest = context if asked == "auto" else asked
    data = Data(1, from_characters(Counter({longest * 4: 1})), "characters")
    return bool(estimate(spec, data, tokenizer.card, workers, {})["fits"])


def _validation(session: Session, project_id: str, spec: FineTuneSpec) -> int | None:
    """Samples of the validation file, if one is given."""
    if spec.validation_file is None:
        return None
    file = require_input(session, project_id, spec.validation_file, purpose="fine-tune", param="validation_file")
    return int((file.report or {}).get("samples", 0))


def _preflight(session: Session, cards: BaseCards, file: File, spec: FineTuneSpec) -> Preflight | None:
    """The file's preflight by this model and template, if there is one."""
    data = spec.hone.data
    asked = asked_of(file, spec.model, data.prompt_template, data.system_prompt, None)
    row = session.get(Preflight, (file.id, asked.key(cards)))
    return row if row is not None and row.status == "completed" else None


def read_data(
    parts: Parts,
    file: File,
    row: Preflight | None,
    tokenizer: CardTokenizer | None,
    spec: FineTuneSpec,
    validation: int | None,
) -> Data:
    """The file's lengths: from its preflight, else from its first samples."""
    samples = int((file.report or {}).get("samples", 0))
    if row is not None and row.found is not None and row.found["unit"] == "tokens" and row.found["samples"]:
        return Data(row.found["samples"], Profile.from_json(row.found["profile"]), "preflight", validation)
    chunks = parts.storage.get(file.storage_key)
    found = numbered_samples(chunks, parts.settings.max_line_bytes, DatasetReport())
    first = list(islice((sample for _, sample in found if isinstance(sample, Sample)), _SAMPLES))
    if not first:
        raise InvalidRequestError(
            f"File {file.id} has no sample that can be used.", param="training_file", code="empty_file"
        )
    if tokenizer is None:
        lengths = Counter(sum(len(turn.content) for turn in sample.messages) for sample in first)
        return Data(max(samples, len(first)), from_characters(lengths), "characters", validation)
    template = spec.hone.data.prompt_template
    chosen = tokenizer.card.default_template if template == "auto" else template
    profile = Profile()
    for sample in first:
        try:
            found_here = [
                encode_sample(one, chosen, tokenizer, spec.hone.data.system_prompt) for one in conversations(sample)
            ]
            profile.add(*longest_first(found_here))
        except TrainingError as error:
            raise InvalidRequestError(error.message, param=error.param, code=error.code) from None
    whole = len(first) < _SAMPLES
    return Data(max(samples, len(first)), profile, "preflight" if whole else "sample", validation)


def known_workers(session: Session) -> list[Worker]:
    """The machines that workers told of, each kind once."""
    now = session.scalar(select(db_now())) or 0.0
    kinds: dict[tuple[str, str, int, bool, int], list[bool]] = defaultdict(list)
    for row in session.scalars(select(WorkerRow)):
        kind = (row.device, row.name, row.memory, row.fast_bfloat16, row.gpus)
        kinds[kind].append(now - row.seen_at < _ALIVE_SECONDS)
    return [
        Worker(name, "cuda" if device == "cuda" else "cpu", memory, fast, len(alive), any(alive), gpus)
        for (device, name, memory, fast, gpus), alive in sorted(kinds.items())
    ]


def measured_jobs(session: Session, model: str, gpus: int) -> dict[str, list[Measured]]:
    """What the newest finished jobs on a base and so many GPUs measured, by the device's name.

    Speeds of all projects count.
    """
    ended = (Job.kind == JobKind.FINE_TUNE, Job.status == JobStatus.SUCCEEDED)
    query = select(Job).where(*ended, Job.model == model, Job.gpus == gpus)
    found: dict[str, list[Measured]] = defaultdict(list)
    alike: Counter[tuple[Any, ...]] = Counter()
    for job in session.scalars(query.order_by(Job.id.desc()).limit(_LOOKED_AT)):
        if (measured := _measured(session, job)) is not None:
            hardware = (job.report or {})["hardware"]
            name = hardware.get("gpu") or hardware["processor"]
            alike[kind := (name, measured.method, measured.precision, measured.fast_path)] += 1
            if alike[kind] <= _JOBS:
                found[name].append(measured)
    return found


def _measured(session: Session, job: Job) -> Measured | None:
    """None for a job that went on from a checkpoint (seconds of some tokens only), and for an old one."""
    report = job.report or {}
    if job.attempt > 1 or not job.resolved or not {"hardware", "dataset", "run"} <= report.keys():
        return None
    steps = select(StepMetric.tokens_per_second).where(StepMetric.job_id == job.id, StepMetric.step > 0)
    speeds = [speed for speed in session.scalars(steps.order_by(StepMetric.step)) if speed]
    if not speeds:
        return None
    try:
        resolved = Resolved.model_validate(job.resolved)
    except ValidationError:  # written by an earlier version, whose settings lacked what came later
        return None
    method: Method = "dpo" if job.spec.get("dpo") else "supervised"
    speed = statistics.harmonic_mean(speeds[_WARM_UP:] or speeds)
    return measured_job(resolved, report, method, speed, int(job.trained_tokens or 0))


def base_loaded(session: Session, spec: FineTuneSpec, warm_seconds: float) -> bool | None:
    """Whether the worker that takes the job has its base in memory (worker.host); None where that depends on which.

    A worker keeps the base of its last job while nothing else comes, for ``warm_seconds``.
    """
    if spec.hone.training.gpus > 1 or not warm_seconds:
        return False
    now = session.scalar(select(db_now())) or 0.0
    recent = or_(Job.status == JobStatus.RUNNING, Job.finished_at > now - warm_seconds)
    jobs = list(session.scalars(select(Job).where(recent, Job.started_at.is_not(None)).order_by(Job.started_at)))
    if not any(_same_base(job, spec) for job in jobs):
        return False
    alive = session.scalar(select(func.count()).where(WorkerRow.seen_at > now - _ALIVE_SECONDS))
    return _same_base(jobs[-1], spec) if alive == 1 else None


def _same_base(job: Job, spec: FineTuneSpec) -> bool:
    """Whether a job leaves the base in memory as ``spec`` wants it."""
    if job.kind != JobKind.FINE_TUNE or job.gpus > 1 or job.status not in {JobStatus.RUNNING, JobStatus.SUCCEEDED}:
        return False
    theirs = FineTuneSpec.model_validate(job.spec)
    wanted = [(one.model, one.hone.quantization, one.hone.training.precision) for one in (theirs, spec)]
    return wanted[0] == wanted[1]
