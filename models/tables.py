"""The tables. Every row that a user can reach carries its project's id."""

from typing import Any

from sqlalchemy import BigInteger, Double, ForeignKey, Index, Integer, MetaData, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from core.ids import new_id
from models.base import Base, db_now
from models.status import JobKind, JobStatus

Json = dict[str, Any]


def _created_at() -> Mapped[float]:
    return mapped_column(Double, default=db_now())


class Project(Base):
    """A tenant. Keys open one project; another project's rows do not exist for it."""

    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("proj_"))
    name: Mapped[str] = mapped_column(String(128))
    created_at: Mapped[float] = _created_at()


class ApiKey(Base):
    """A key, kept as its SHA-256: keys have 256 random bits, so a slow hash would protect nothing."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("key_"))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), index=True)
    name: Mapped[str] = mapped_column(String(128))
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    hint: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[float] = _created_at()
    revoked_at: Mapped[float | None]


class DashboardSession(Base):
    """A browser that signed in with a key: the SHA-256 of its cookie's 256 random bits. It ends with the key."""

    __tablename__ = "dashboard_sessions"

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[float] = _created_at()
    expires_at: Mapped[float] = mapped_column(Double, index=True)


class File(Base):
    """An uploaded or produced file. ``storage_key`` is Hone's; ``filename`` is only shown."""

    __tablename__ = "files"
    __table_args__ = (
        Index("ix_files_project_id_id", "project_id", "id"),
        # What the sweep of expired files reads.
        Index("ix_files_expires_at", "expires_at"),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("file-"))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    filename: Mapped[str] = mapped_column(String(512))
    purpose: Mapped[str] = mapped_column(String(32))
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    storage_key: Mapped[str] = mapped_column(String(512))
    status: Mapped[str] = mapped_column(String(16), default="processed")
    status_details: Mapped[str | None] = mapped_column(Text)
    #: What the check of a dataset found (core.dataset.DatasetReport).
    report: Mapped[Json | None]
    #: Where an imported file comes from: dataset, configuration, split and commit (core.hub_child).
    source: Mapped[Json | None]
    #: The job that produced the file, and its place in ``result_files``.
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id", ondelete="SET NULL"), index=True)
    created_at: Mapped[float] = _created_at()
    expires_at: Mapped[float | None]


class FileImport(Base):
    """A dataset of the Hub on its way to being a file; the file appears with the end of its import, in one commit."""

    __tablename__ = "file_imports"
    __table_args__ = (
        Index("ix_file_imports_project_id_id", "project_id", "id"),
        # What is looked for when there is time to import something.
        Index("ix_file_imports_status_id", "status", "id"),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("fileimport_"))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    #: What was asked for (api.imports.ImportRequest).
    asked: Mapped[Json]
    #: queued, running, completed, failed or cancelled.
    status: Mapped[str] = mapped_column(String(16), default="queued")
    #: The attempt that may write here: one that was given up for dead writes nothing any more.
    run: Mapped[str | None] = mapped_column(String(64))
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    total_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    rows: Mapped[int] = mapped_column(BigInteger, default=0)
    #: ``{"message", "param", "code", "details"}`` of a failed one.
    error: Mapped[Json | None]
    file_id: Mapped[str | None] = mapped_column(ForeignKey("files.id", ondelete="SET NULL"), index=True)
    created_at: Mapped[float] = _created_at()
    updated_at: Mapped[float] = _created_at()


class MultipartUpload(Base):
    """A file that comes in parts; ``bytes`` is the size that was announced."""

    __tablename__ = "uploads"
    # What the sweep of expired uploads reads.
    __table_args__ = (Index("ix_uploads_status_expires_at", "status", "expires_at"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("upload_"))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), index=True)
    filename: Mapped[str] = mapped_column(String(512))
    purpose: Mapped[str] = mapped_column(String(32))
    bytes: Mapped[int] = mapped_column(BigInteger)
    #: Seconds that the file will live; None keeps it.
    file_expires_after: Mapped[int | None]
    #: OpenAI's words: pending, completed, cancelled, expired.
    status: Mapped[str] = mapped_column(String(16), default="pending")
    file_id: Mapped[str | None] = mapped_column(ForeignKey("files.id", ondelete="SET NULL"), index=True)
    created_at: Mapped[float] = _created_at()
    expires_at: Mapped[float] = mapped_column(Double)


class UploadPart(Base):
    """One part of an upload that is pending; gone when the upload has ended."""

    __tablename__ = "upload_parts"

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("part_"))
    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id", ondelete="CASCADE"), index=True)
    bytes: Mapped[int] = mapped_column(BigInteger)
    storage_key: Mapped[str] = mapped_column(String(512))
    created_at: Mapped[float] = _created_at()


class Job(Base):
    """A fine-tune or an evaluation. Only ``models.lifecycle`` writes ``status`` and the lease."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index("ix_jobs_project_id_kind_id", "project_id", "kind", "id"),
        # What a claim reads: the queue in its order.
        Index("ix_jobs_status_priority_id", "status", "priority", "id"),
        # What the reaper reads.
        Index("ix_jobs_status_lease_expires_at", "status", "lease_expires_at"),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    kind: Mapped[JobKind] = mapped_column(String(16))
    status: Mapped[JobStatus] = mapped_column(String(32))
    model: Mapped[str] = mapped_column(String(256))
    #: What was asked for (core.specs), frozen.
    spec: Mapped[Json]
    #: The settings as they run (core.resolve.Resolved), once the worker knows.
    resolved: Mapped[Json | None]
    #: Figures of the run: model report, dataset statistics, hardware; of an evaluation, the scores.
    report: Mapped[Json | None]
    labels: Mapped[Json | None]
    created_at: Mapped[float] = _created_at()
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]
    estimated_finish: Mapped[float | None]
    fine_tuned_model: Mapped[str | None] = mapped_column(String(256))
    trained_tokens: Mapped[int | None] = mapped_column(BigInteger)
    step: Mapped[int] = mapped_column(Integer, default=0)
    total_steps: Mapped[int | None]
    error_code: Mapped[str | None] = mapped_column(String(64))
    error_message: Mapped[str | None] = mapped_column(Text)
    error_param: Mapped[str | None] = mapped_column(String(128))

    #: Lower runs first; within one priority, in order of arrival.
    priority: Mapped[int] = mapped_column(Integer, default=0)
    #: GPUs of one machine; a worker with fewer leaves the job to others.
    gpus: Mapped[int] = mapped_column(Integer, default=1, server_default="1")
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    lease_owner: Mapped[str | None] = mapped_column(String(64))
    #: Rises with every claim. A worker's write carries the epoch of its claim, so a replaced worker can't write.
    lease_epoch: Mapped[int] = mapped_column(Integer, default=0)
    lease_expires_at: Mapped[float | None]
    last_progress_at: Mapped[float | None]
    cancel_requested_at: Mapped[float | None]
    #: Only while it runs: a pause that its worker has still to carry out.
    pause_requested_at: Mapped[float | None]


class JobEvent(Base):
    """What happened to a job, in order; never changed."""

    __tablename__ = "job_events"
    __table_args__ = (Index("ix_job_events_job_id_id", "job_id", "id"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("ftevent-"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    created_at: Mapped[float] = _created_at()
    level: Mapped[str] = mapped_column(String(8), default="info")
    type: Mapped[str] = mapped_column(String(16), default="message")
    message: Mapped[str] = mapped_column(Text)
    data: Mapped[Json | None]


class StepMetric(Base):
    """The figures of one optimizer step; a later attempt that repeats the step replaces them."""

    __tablename__ = "step_metrics"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    step: Mapped[int] = mapped_column(Integer, primary_key=True)
    attempt: Mapped[int] = mapped_column(Integer)
    created_at: Mapped[float] = _created_at()
    train_loss: Mapped[float | None]
    train_accuracy: Mapped[float | None]
    valid_loss: Mapped[float | None]
    valid_mean_token_accuracy: Mapped[float | None]
    #: Of answers to validation prompts, where the job asked for it.
    codebleu: Mapped[float | None]
    #: Of preference tuning, by name (worker.progress.REWARDS).
    rewards: Mapped[Json | None]
    learning_rate: Mapped[float | None]
    grad_norm: Mapped[float | None]
    tokens_per_second: Mapped[float | None]
    epoch: Mapped[float | None]
    #: The most memory that the run has taken so far, in bytes: the GPU's, or without one the process's own.
    peak_memory: Mapped[float | None]


class Checkpoint(Base):
    """A step's adapter and optimizer, one zip in storage. The row is the commit: without it, there is no checkpoint."""

    __tablename__ = "checkpoints"
    __table_args__ = (UniqueConstraint("job_id", "step"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("ftckpt-"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    step: Mapped[int] = mapped_column(Integer)
    created_at: Mapped[float] = _created_at()
    storage_key: Mapped[str] = mapped_column(String(512))
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    metrics: Mapped[Json]


class FineTunedModel(Base):
    """A fine-tuned model: the adapter zip of a job that succeeded."""

    __tablename__ = "models"
    __table_args__ = (Index("ix_models_project_id_created_at", "project_id", "created_at"),)

    id: Mapped[str] = mapped_column(String(256), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), unique=True)
    base_model: Mapped[str] = mapped_column(String(256))
    prompt_template: Mapped[str] = mapped_column(String(16))
    adapter_file_id: Mapped[str] = mapped_column(ForeignKey("files.id"))
    created_at: Mapped[float] = _created_at()


class CheckpointPermission(Base):
    """Lets another project use a fine-tuned model; ``model`` is the name that requests use, a checkpoint's or its."""

    __tablename__ = "checkpoint_permissions"
    __table_args__ = (
        UniqueConstraint("project_id", "model"),
        Index("ix_checkpoint_permissions_model_id", "model", "id"),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("cp_"))
    #: The job that made the model.
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    model: Mapped[str] = mapped_column(String(256))
    #: Who may use it.
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    created_at: Mapped[float] = _created_at()


class Eval(Base):
    """An evaluation's definition: what an item looks like and by what it is judged."""

    __tablename__ = "evals"
    __table_args__ = (Index("ix_evals_project_id_id", "project_id", "id"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("eval_"))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(256))
    data_source_config: Mapped[Json]
    #: ``{"criteria": [...]}``: JSON columns hold objects.
    testing_criteria: Mapped[Json]
    labels: Mapped[Json | None]
    created_at: Mapped[float] = _created_at()
    updated_at: Mapped[float | None]


class EvalRun(Base):
    """One run of an eval; its status and its scores are its job's."""

    __tablename__ = "eval_runs"
    __table_args__ = (Index("ix_eval_runs_eval_id_id", "eval_id", "id"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("evalrun_"))
    eval_id: Mapped[str] = mapped_column(ForeignKey("evals.id", ondelete="CASCADE"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), unique=True)
    name: Mapped[str] = mapped_column(String(256))
    data_source: Mapped[Json]
    labels: Mapped[Json | None]
    created_at: Mapped[float] = _created_at()


class EvalOutputItem(Base):
    """One item of a run: prompt, answer and scores, and the base's beside them."""

    __tablename__ = "eval_output_items"
    __table_args__ = (UniqueConstraint("run_id", "position"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("outputitem_"))
    run_id: Mapped[str] = mapped_column(ForeignKey("eval_runs.id", ondelete="CASCADE"))
    position: Mapped[int] = mapped_column(Integer)
    status: Mapped[str] = mapped_column(String(8))
    item: Mapped[Json]
    #: ``{"results": [...]}``, one entry a criterion.
    results: Mapped[Json]
    sample: Mapped[Json]
    base: Mapped[Json | None]
    created_at: Mapped[float] = _created_at()


class KeptAnswer(Base):
    """An answer of an evaluation under way, for an attempt that goes on after this one; gone when the job has ended."""

    __tablename__ = "kept_answers"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    #: "model", or "base" beside it.
    side: Mapped[str] = mapped_column(String(8), primary_key=True)
    position: Mapped[int] = mapped_column(Integer, primary_key=True)
    answer: Mapped[Json]
    #: ``{"grades": [...]}``, one entry a criterion, once the answer has been graded.
    grades: Mapped[Json | None]


class OutboxMessage(Base):
    """Something to tell the outside, written with the change that it tells of and sent after the commit."""

    __tablename__ = "outbox"
    __table_args__ = (Index("ix_outbox_sent_at_id", "sent_at", "id"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("outbox_"))
    kind: Mapped[str] = mapped_column(String(16))
    payload: Mapped[Json]
    created_at: Mapped[float] = _created_at()
    sent_at: Mapped[float | None]


class IdempotencyKey(Base):
    """A key that a request was sent with, and the answer that it got; written with what the request made."""

    __tablename__ = "idempotency_keys"

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    #: SHA-256 of method, path and body.
    fingerprint: Mapped[str] = mapped_column(String(64))
    status: Mapped[int] = mapped_column(Integer)
    body: Mapped[str] = mapped_column(Text)
    created_at: Mapped[float] = mapped_column(Double, default=db_now(), index=True)


class WebhookEndpoint(Base):
    """Where a project wants to be told of events. The secret is kept as it is: every delivery is signed with it."""

    __tablename__ = "webhook_endpoints"
    __table_args__ = (Index("ix_webhook_endpoints_project_id_id", "project_id", "id"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("we_"))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(256))
    url: Mapped[str] = mapped_column(String(2048))
    #: ``{"types": [...]}``: JSON columns hold objects.
    event_types: Mapped[Json]
    secret: Mapped[str] = mapped_column(String(64))
    #: Signs beside ``secret`` until it expires: receivers have that long to learn of a rotation.
    old_secret: Mapped[str | None] = mapped_column(String(64))
    old_secret_expires_at: Mapped[float | None]
    created_at: Mapped[float] = _created_at()
    updated_at: Mapped[float] = _created_at()


class WebhookDelivery(Base):
    """One event on its way to one endpoint, written with the change that it tells of: the webhooks' outbox and log."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        Index("ix_webhook_deliveries_endpoint_id_id", "endpoint_id", "id"),
        Index("ix_webhook_deliveries_next_try_at", "next_try_at"),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("whd_"))
    endpoint_id: Mapped[str] = mapped_column(ForeignKey("webhook_endpoints.id", ondelete="CASCADE"))
    event_id: Mapped[str] = mapped_column(String(64))
    event_type: Mapped[str] = mapped_column(String(64))
    body: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(String(16), default="pending")
    #: All tries so far; a sender's outcome counts only while this is still its own try.
    tries: Mapped[int] = mapped_column(Integer, default=0)
    tries_left: Mapped[int] = mapped_column(Integer)
    #: While a try is under way: when it is taken to be lost. None once delivered or given up.
    next_try_at: Mapped[float | None]
    #: ``{"tries": [...]}``, oldest first.
    log: Mapped[Json] = mapped_column(default=lambda: {"tries": []})
    created_at: Mapped[float] = _created_at()


class Preflight(Base):
    """What one pass over a dataset found, for one way to make tokens of it; ``key`` is a hash of that way."""

    __tablename__ = "preflights"

    file_id: Mapped[str] = mapped_column(ForeignKey("files.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    #: running, completed or failed.
    status: Mapped[str] = mapped_column(String(16), default="running")
    #: The pass that may write here: one that was given up for dead writes nothing any more.
    run: Mapped[str] = mapped_column(String(64))
    bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    samples: Mapped[int] = mapped_column(BigInteger, default=0)
    #: Of ``core.preflight.examine``.
    found: Mapped[Json | None]
    note: Mapped[str | None] = mapped_column(Text)
    error: Mapped[str | None] = mapped_column(Text)
    started_at: Mapped[float] = _created_at()
    updated_at: Mapped[float] = _created_at()


class Worker(Base):
    """A worker and what it computes with; only told, never relied on: leases say who works."""

    __tablename__ = "workers"

    #: As in ``Job.lease_owner``.
    owner: Mapped[str] = mapped_column(String(64), primary_key=True)
    #: cuda or cpu.
    device: Mapped[str] = mapped_column(String(8))
    name: Mapped[str] = mapped_column(String(256))
    #: Bytes of one GPU's memory, or of the machine's.
    memory: Mapped[int] = mapped_column(BigInteger)
    #: GPUs that it may use; 0 on a processor.
    gpus: Mapped[int] = mapped_column(Integer)
    fast_bfloat16: Mapped[bool]
    started_at: Mapped[float] = _created_at()
    seen_at: Mapped[float] = _created_at()


metadata: MetaData = Base.metadata
