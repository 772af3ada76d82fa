"""What runs of an eval and their items look like on the wire."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from api.job_schemas import Progress, progress_of
from api.pagination import Listed
from core.specs import EvaluationSpec, TemplateMessage
from core.templates import render
from models.status import JobStatus
from models.tables import EvalOutputItem, EvalRun, Job

RunStatus = Literal["queued", "in_progress", "completed", "canceled", "failed"]

#: A run's status is its job's, in the words of OpenAI's evals.
STATUSES: dict[JobStatus, RunStatus] = {
    JobStatus.VALIDATING_FILES: "queued",
    JobStatus.QUEUED: "queued",
    JobStatus.PAUSED: "queued",
    JobStatus.RUNNING: "in_progress",
    JobStatus.SUCCEEDED: "completed",
    JobStatus.CANCELLED: "canceled",
    JobStatus.FAILED: "failed",
}


class _Wire(BaseModel):
    model_config = ConfigDict(protected_namespaces=())  # OpenAI's `model_name`


class EvalApiError(_Wire):
    """Why a run failed."""

    code: str
    message: str


class ResultCounts(_Wire):
    """How many items passed."""

    total: int = 0
    passed: int = 0
    failed: int = 0
    errored: int = 0


class TokenUsage(_Wire):
    """Tokens that went in and came out."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    total_tokens: int = 0


class ModelUsage(TokenUsage):
    """Tokens of one model over the run; zeros until it has completed."""

    model_name: str
    invocation_count: int = 0


class CriterionResult(_Wire):
    """How many items passed one criterion."""

    testing_criteria: str
    passed: int
    failed: int


class HoneRunObject(_Wire):
    """Ours: the scores (the model's and the base's), the files that came out, and how far the run is."""

    scores: dict[str, Any] | None
    result_files: list[str]
    progress: Progress
    compare_base: bool
    stop_at_fence: bool


class RunObject(Listed):
    """OpenAI's run of an eval, and ours under ``hone``."""

    object: Literal["eval.run"] = "eval.run"
    eval_id: str
    status: RunStatus
    model: str
    name: str
    created_at: int
    report_url: str
    result_counts: ResultCounts
    per_model_usage: list[ModelUsage]
    per_testing_criteria_results: list[CriterionResult]
    data_source: dict[str, Any]
    #: Null unless the run failed, as in OpenAI's own examples.
    error: EvalApiError | None
    metadata: dict[str, str] | None
    hone: HoneRunObject


class RunDeleted(_Wire):
    """What the deletion of a run answers."""

    object: Literal["eval.run.deleted"] = "eval.run.deleted"
    deleted: Literal[True] = True
    run_id: str


@dataclass(frozen=True)
class Outcome:
    """What a run has brought so far: its items by status ("pass", "fail"), and the ids of its files."""

    counts: Mapping[str, int]
    files: list[str]


def run_object(run: EvalRun, job: Job, outcome: Outcome, report_url: str) -> RunObject:
    """A run's rows as they go onto the wire."""
    spec = EvaluationSpec.model_validate(job.spec)
    passed, failed = outcome.counts.get("pass", 0), outcome.counts.get("fail", 0)
    error = EvalApiError(code=job.error_code, message=job.error_message or "") if job.error_code else None
    return RunObject(
        id=run.id,
        eval_id=run.eval_id,
        status=STATUSES[JobStatus(job.status)],
        model=job.model,
        name=run.name,
        created_at=int(run.created_at),
        report_url=report_url,
        result_counts=ResultCounts(total=passed + failed, passed=passed, failed=failed),
        per_model_usage=_usage(job),
        per_testing_criteria_results=_criteria(job, spec),
        data_source=run.data_source,
        error=error,
        metadata=run.labels,
        hone=HoneRunObject(
            scores=job.report,
            result_files=outcome.files,
            progress=progress_of(job),
            compare_base=spec.compare_base,
            stop_at_fence=spec.stops_at_fence,
        ),
    )


def _usage(job: Job) -> list[ModelUsage]:
    """The model's, and its base's where that was asked as well."""
    told = (job.report or {}).get("usage")
    if not told:
        return [ModelUsage(model_name=job.model)] if job.model else []
    return [
        ModelUsage(
            model_name=entry["model"],
            invocation_count=entry["answers"],
            prompt_tokens=entry["prompt_tokens"],
            completion_tokens=entry["completion_tokens"],
            total_tokens=entry["prompt_tokens"] + entry["completion_tokens"],
        )
        for entry in told
    ]


def _criteria(job: Job, spec: EvaluationSpec) -> list[CriterionResult]:
    """Zeros until the scores are known."""
    scored = {entry["name"]: entry["model"] for entry in (job.report or {}).get("criteria", [])}
    return [
        CriterionResult(
            testing_criteria=criterion.name,
            passed=scored.get(criterion.name, {}).get("passed", 0),
            failed=scored.get(criterion.name, {}).get("failed", 0),
        )
        for criterion in spec.criteria
    ]


class ItemResult(_Wire):
    """One criterion's score of one item, with CodeBLEU's parts, why it was not scored, and the base's beside it."""

    name: str
    type: str
    passed: bool
    score: float
    sample: dict[str, Any] | None = None
    exact_match: bool | None = None
    parts: dict[str, float | None] | None = None
    parse: str | None = None
    reason: str | None = None
    base: dict[str, Any] | None = None


class ItemMessage(_Wire):
    """A message of the prompt or of the answer."""

    role: str
    content: str


class ItemSample(_Wire):
    """What the model was asked and what it answered."""

    input: list[ItemMessage]
    output: list[ItemMessage]
    finish_reason: str
    model: str
    usage: TokenUsage
    error: EvalApiError | None = None
    max_completion_tokens: int
    temperature: float
    top_p: float
    seed: int


class OutputItem(Listed):
    """OpenAI's output item, and the base's answer under ``hone``."""

    object: Literal["eval.run.output_item"] = "eval.run.output_item"
    created_at: int
    run_id: str
    eval_id: str
    status: str
    datasource_item_id: int
    datasource_item: dict[str, Any]
    results: list[ItemResult]
    sample: ItemSample
    hone: dict[str, Any]


def output_item(row: EvalOutputItem, run: EvalRun, job: Job) -> OutputItem:
    """An item's row as it goes onto the wire."""
    return OutputItem(
        id=row.id,
        created_at=int(row.created_at),
        run_id=run.id,
        eval_id=run.eval_id,
        status=row.status,
        datasource_item_id=row.position,
        datasource_item=row.item,
        results=[ItemResult.model_validate(result) for result in row.results["results"]],
        sample=_sample(row, job),
        hone={
            "base": row.base,
            "code": row.sample.get("code"),
            "finish_reason": row.sample["finish_reason"],
        },
    )


def _prompt(message: TemplateMessage, row: EvalOutputItem) -> ItemMessage:
    content = render(message.content, {"item": row.item}, where=f"item {row.position}")
    return ItemMessage(role=message.role, content=content)


def _sample(row: EvalOutputItem, job: Job) -> ItemSample:
    spec = EvaluationSpec.model_validate(job.spec)
    asked, answered = int(row.sample.get("prompt_tokens", 0)), int(row.sample.get("tokens", 0))
    text = row.sample["output_text"]
    return ItemSample(
        input=[_prompt(message, row) for message in spec.messages],
        output=[] if text is None else [ItemMessage(role="assistant", content=text)],
        # OpenAI's word for an end that the request asked for; which one it was stands under `hone`.
        finish_reason="stop" if row.sample["finish_reason"] == "fence" else row.sample["finish_reason"],
        model=job.model,
        usage=TokenUsage(prompt_tokens=asked, completion_tokens=answered, total_tokens=asked + answered),
        max_completion_tokens=spec.sampling.max_tokens,
        temperature=spec.sampling.temperature,
        top_p=spec.sampling.top_p,
        seed=spec.sampling.seed,
    )
