"""What fine-tuning jobs look like on the wire: OpenAI's fields, and ours under ``hone``."""

import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from api.pagination import Listed
from api.schemas import Absent, Metadata
from core.model_names import checkpoint_name
from core.specs import DpoSpec, EvaluationDuringTrainingSpec, FineTuneSpec, HoneSpec, Hyperparameters, Spec, WandbSpec
from models.tables import Checkpoint, Job, JobEvent, StepMetric


def _no_reinforcement(value: Any) -> Any:
    if value == "reinforcement":
        raise PydanticCustomError("unsupported", "this server does not do 'reinforcement'. Use 'supervised' or 'dpo'")
    return value


class SupervisedMethod(Spec):
    """OpenAI's supervised method."""

    hyperparameters: Hyperparameters | None = None


class DpoHyperparameters(Hyperparameters, DpoSpec):
    """OpenAI's hyperparameters of preference tuning."""


class DpoMethod(Spec):
    """OpenAI's dpo method."""

    hyperparameters: DpoHyperparameters | None = None


class Method(Spec):
    """How to tune. OpenAI's third method is known by name, so that it can be refused by name."""

    type: Annotated[Literal["supervised", "dpo"], BeforeValidator(_no_reinforcement)]
    supervised: SupervisedMethod | None = None
    dpo: DpoMethod | None = None

    @model_validator(mode="after")
    def _only_the_types_own(self) -> "Method":
        other = "dpo" if self.type == "supervised" else "supervised"
        if getattr(self, other) is not None:
            raise ValueError(f"'method.type' is '{self.type}' and 'method.{other}' is given; leave one of them out")
        return self

    @property
    def hyperparameters(self) -> Hyperparameters | None:
        """Those of the type."""
        chosen = self.supervised if self.type == "supervised" else self.dpo
        return chosen.hyperparameters if chosen else None


class Integration(Spec):
    """OpenAI's integration with Weights & Biases, the only one there is."""

    type: Literal["wandb"]
    wandb: WandbSpec


# Letters of both cases, digits and three signs: the suffix becomes part of the model's name, between colons.
Suffix = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")]


class FineTuneRequest(Spec):
    """The body of POST /v1/fine_tuning/jobs."""

    model: str = Field(max_length=256)
    training_file: str = Field(max_length=64)
    validation_file: str | None = Field(None, max_length=64)
    method: Method | None = None
    hyperparameters: Hyperparameters | None = Field(None, deprecated=True)
    suffix: Suffix | None = None
    seed: int | None = Field(None, ge=0, le=2_147_483_647)
    metadata: Metadata | None = None
    integrations: list[Integration] | None = Field(None, max_length=1)
    hone: HoneSpec | None = None

    @model_validator(mode="after")
    def _one_set_of_hyperparameters(self) -> "FineTuneRequest":
        inner, outer = self._in_method(), self.__dict__["hyperparameters"]
        if inner is not None and outer is not None and _openais(inner) != outer:
            raise ValueError("'hyperparameters' and those in 'method' differ; give 'method' alone")
        return self

    @model_validator(mode="after")
    def _validation_data_where_it_is_needed(self) -> "FineTuneRequest":
        asked = self.hone or HoneSpec()
        needed = asked.evaluation.needs_validation
        if needed and self.validation_file is None and asked.data.validation_fraction == 0:
            raise ValueError(
                f"'hone.evaluation.{needed}' needs validation data: give 'validation_file', or a "
                "'hone.data.validation_fraction' above 0"
            )
        return self

    def _in_method(self) -> Hyperparameters | None:
        return self.method.hyperparameters if self.method else None

    def chosen_hyperparameters(self) -> Hyperparameters:
        """The hyperparameters, wherever they were given."""
        outer: Hyperparameters | None = self.__dict__["hyperparameters"]  # not the attribute, which warns of its age
        return _openais(self._in_method() or outer or Hyperparameters())

    @model_validator(mode="after")
    def _what_dpo_has_not(self) -> "FineTuneRequest":
        if self.method is None or self.method.type != "dpo" or self.hone is None:
            return self
        if self.hone.evaluation != EvaluationDuringTrainingSpec():
            raise ValueError("'hone.evaluation' is for the method 'supervised'; leave it out with 'dpo'")
        if self.hone.training.gpus != 1:
            raise ValueError("'hone.training.gpus' is for the method 'supervised'; 'dpo' trains on one GPU")
        return self

    def _dpo(self) -> DpoSpec | None:
        if self.method is None or self.method.type != "dpo":
            return None
        inner = self._in_method()
        return DpoSpec(beta=inner.beta) if isinstance(inner, DpoHyperparameters) else DpoSpec()

    def spec(self) -> FineTuneSpec:
        """What was asked for, with a seed."""
        return FineTuneSpec(
            model=self.model,
            training_file=self.training_file,
            validation_file=self.validation_file,
            seed=secrets.randbelow(2**31) if self.seed is None else self.seed,
            suffix=self.suffix,
            hyperparameters=self.chosen_hyperparameters(),
            dpo=self._dpo(),
            wandb=self.integrations[0].wandb if self.integrations else None,
            hone=self.hone or HoneSpec(),
        )


def _openais(given: Hyperparameters) -> Hyperparameters:
    """The hyperparameters that all methods have."""
    return Hyperparameters.model_validate(given.model_dump(include=set(Hyperparameters.model_fields)))


class JobError(BaseModel):
    """Why a job failed."""

    code: str
    message: str
    param: str | None


class Progress(BaseModel):
    """How far a job is. ``attempt`` counts its runs by a worker."""

    step: int
    total_steps: int | None
    attempt: int


class HoneJob(BaseModel):
    """Ours: the settings as they run (each "auto" replaced once the worker knows), why, and what came out."""

    lora: dict[str, Any]
    quantization: dict[str, Any]
    training: dict[str, Any]
    data: dict[str, Any]
    evaluation: dict[str, Any]
    reasons: dict[str, str]
    #: How the job uses the device's memory (core.plan.MemoryPlan); null until the worker knows.
    plan: dict[str, Any] | None
    progress: Progress
    report: dict[str, Any] | None


class FineTuningJob(Listed):
    """OpenAI's job, and ours under ``hone``."""

    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    error: JobError | None
    estimated_finish: int | None
    fine_tuned_model: str | None
    finished_at: int | None
    hyperparameters: dict[str, Any]
    integrations: list[Integration]
    metadata: dict[str, str] | None
    method: dict[str, Any]
    model: str
    organization_id: str
    result_files: list[str]
    seed: int
    status: str
    trained_tokens: int | None
    training_file: str
    validation_file: str | None
    #: In OpenAI's examples, not in its schema.
    user_provided_suffix: str | None
    hone: HoneJob


def _seconds(time: float | None) -> int | None:
    return None if time is None else int(time)


def _laid_over(asked: Mapping[str, Any], resolved: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked for, each "auto" replaced by what was chosen."""
    return {name: resolved.get(name, value) if value == "auto" else value for name, value in asked.items()}


def progress_of(job: Job) -> Progress:
    """A job's progress."""
    return Progress(step=job.step, total_steps=job.total_steps, attempt=job.attempt)


def job_error(job: Job) -> JobError | None:
    """A failed job's error."""
    if job.error_code is None:
        return None
    return JobError(code=job.error_code, message=job.error_message or "", param=job.error_param)


def fine_tuning_job(job: Job, result_files: list[str]) -> FineTuningJob:
    """A job's row as it goes onto the wire; ``result_files`` are ids."""
    spec = FineTuneSpec.model_validate(job.spec)
    resolved = job.resolved or {}  # as the worker wrote it; an earlier version's lacks what came later
    hyperparameters = _laid_over(spec.hyperparameters.model_dump(mode="json"), resolved)
    asked = spec.hone.model_dump(mode="json")
    return FineTuningJob(
        id=job.id,
        created_at=int(job.created_at),
        error=job_error(job),
        estimated_finish=_seconds(job.estimated_finish) if job.finished_at is None else None,
        fine_tuned_model=job.fine_tuned_model,
        finished_at=_seconds(job.finished_at),
        hyperparameters=hyperparameters,
        integrations=[Integration(type="wandb", wandb=spec.wandb)] if spec.wandb else [],
        metadata=job.labels,
        method=_method(spec, hyperparameters, resolved),
        model=job.model,
        organization_id=job.project_id,
        result_files=result_files,
        seed=spec.seed,
        status=job.status,
        trained_tokens=job.trained_tokens,
        training_file=spec.training_file,
        validation_file=spec.validation_file,
        user_provided_suffix=spec.suffix,
        hone=HoneJob(
            lora=asked["lora"],
            quantization=asked["quantization"],
            training=_laid_over(asked["training"], resolved),
            data=_laid_over(asked["data"], resolved),
            evaluation=asked["evaluation"],
            reasons=resolved.get("reasons", {}),
            plan=resolved.get("plan"),
            progress=progress_of(job),
            report=job.report,
        ),
    )


def _method(spec: FineTuneSpec, hyperparameters: dict[str, Any], resolved: Mapping[str, Any]) -> dict[str, Any]:
    if spec.dpo is None:
        return {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}
    beta = _laid_over(spec.dpo.model_dump(mode="json"), resolved)
    return {"type": "dpo", "dpo": {"hyperparameters": {**hyperparameters, **beta}}}


class JobEventObject(Listed):
    """OpenAI's event of a job."""

    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: Absent[dict[str, Any]]


def job_event(event: JobEvent) -> JobEventObject:
    """An event's row as it goes onto the wire."""
    return JobEventObject(
        id=event.id,
        created_at=int(event.created_at),
        level=event.level,
        message=event.message,
        type=event.type,
        data=event.data,
    )


class CheckpointMetrics(BaseModel):
    """OpenAI's figures of a checkpoint; what was not measured is left out."""

    step: float
    train_loss: Absent[float] = None
    train_mean_token_accuracy: Absent[float] = None
    valid_loss: Absent[float] = None
    valid_mean_token_accuracy: Absent[float] = None
    full_valid_loss: Absent[float] = None
    full_valid_mean_token_accuracy: Absent[float] = None


class CheckpointObject(Listed):
    """OpenAI's checkpoint of a job."""

    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    metrics: CheckpointMetrics
    step_number: int


def checkpoint_object(checkpoint: Checkpoint, model: str) -> CheckpointObject:
    """A checkpoint's row as it goes onto the wire; ``model`` is the name of what its job makes."""
    known = {name: value for name, value in checkpoint.metrics.items() if name in CheckpointMetrics.model_fields}
    if "train_accuracy" in checkpoint.metrics:
        known.setdefault("train_mean_token_accuracy", checkpoint.metrics["train_accuracy"])
    return CheckpointObject(
        id=checkpoint.id,
        created_at=int(checkpoint.created_at),
        fine_tuned_model_checkpoint=checkpoint_name(model, checkpoint.step),
        fine_tuning_job_id=checkpoint.job_id,
        metrics=CheckpointMetrics(**{**known, "step": checkpoint.step}),
        step_number=checkpoint.step,
    )


class StepObject(BaseModel):
    """The figures of one optimizer step; what was not measured is null."""

    step: int
    attempt: int
    created_at: float
    train_loss: float | None
    train_accuracy: float | None
    valid_loss: float | None
    valid_mean_token_accuracy: float | None
    codebleu: float | None
    learning_rate: float | None
    grad_norm: float | None
    tokens_per_second: float | None
    epoch: float | None
    peak_memory: float | None
    #: Of preference tuning: reward_chosen, reward_margin and so on.
    rewards: Absent[dict[str, float]] = None


class StepList(BaseModel):
    """Steps in their order; go on with ``after_step`` = the last one's step."""

    object: Literal["list"] = "list"
    data: list[StepObject]
    has_more: bool


def step_object(row: StepMetric) -> StepObject:
    """A step's row as it goes onto the wire."""
    return StepObject.model_validate(row, from_attributes=True)
