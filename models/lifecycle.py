r"""The life of a job: the only writer of ``Job.status`` and of its lease.

    validating_files -> queued -> running -> succeeded | failed | cancelled
            |             |  ^       |  \-> paused -> queued | cancelled
            v             v  |_______|  (lease lost, or the worker was told to stop)
          failed      cancelled | paused

Every move is one UPDATE guarded by the present status, and writes an event in the same transaction. A worker's writes
are guarded by the epoch of its claim as well: once another worker has claimed the job, they match no row.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, CursorResult, Result, and_, bindparam, delete, func, select, true, update
from sqlalchemy.orm import Session

from core.errors import HoneError, InvalidRequestError, NotFoundError
from models import webhooks
from models.base import db_now
from models.database import OUTBOX_WRITTEN
from models.status import ENDED, TRANSITIONS, JobKind, JobStatus
from models.tables import (
    Checkpoint,
    EvalOutputItem,
    EvalRun,
    File,
    Job,
    JobEvent,
    KeptAnswer,
    OutboxMessage,
    StepMetric,
)

HINT = "hint"


class LeaseLostError(Exception):
    """The job is no longer this worker's: its lease ran out and another took it, or it ended."""


@dataclass(frozen=True)
class Claim:
    """A worker's right to a job: valid while the job's row carries this epoch."""

    job_id: str
    kind: JobKind
    epoch: int
    attempt: int
    owner: str


@dataclass(frozen=True)
class Orders:
    """What a heartbeat brings back."""

    cancel: bool
    pause: bool


# --- Moves -----------------------------------------------------------------------------------------------------------


def _move(
    session: Session,
    job_id: str,
    to: JobStatus,
    *,
    where: ColumnElement[bool] | None = None,
    only_from: frozenset[JobStatus] | None = None,
    **values: Any,
) -> bool:
    """Move a job to ``to`` if its present status allows it; False when no row matched."""
    sources = {status for status, targets in TRANSITIONS.items() if to in targets}
    if only_from is not None:
        sources &= only_from
    changed = session.execute(
        update(Job)
        .where(Job.id == job_id, Job.status.in_(sources), true() if where is None else where)
        .values(status=to, **values)
        .execution_options(synchronize_session=False)
    )
    session.expire_all()
    moved = _matched(changed) == 1
    if moved and to in ENDED:
        webhooks.announce(session, job_id, to)
        session.execute(delete(KeptAnswer).where(KeptAnswer.job_id == job_id))  # nobody goes on from here
    return moved


def _matched(result: Result[Any]) -> int:
    assert isinstance(result, CursorResult)  # as every UPDATE's is
    return result.rowcount


_RELEASED: dict[str, Any] = {"lease_owner": None, "lease_expires_at": None}


def add_event(
    session: Session,
    job_id: str,
    message: str,
    *,
    level: str = "info",
    type: str = "message",
    data: dict[str, Any] | None = None,
) -> JobEvent:
    """Append to a job's events."""
    event = JobEvent(job_id=job_id, message=message, level=level, type=type, data=data)
    session.add(event)
    return event


def submit(session: Session, job: Job) -> Job:
    """Write a new job, its events and the hint to the workers; its files have been checked by the caller."""
    job.status = JobStatus.VALIDATING_FILES
    session.add(job)
    session.flush()
    noun = "fine-tuning job" if job.kind == JobKind.FINE_TUNE else "evaluation"
    add_event(session, job.id, f"Created {noun}: {job.id}")
    _queue(session, job.id)
    add_event(session, job.id, "Files validated, job queued")
    return job


def _queue(session: Session, job_id: str, **values: Any) -> bool:
    """Put a job into the queue and a hint into the outbox."""
    if not _move(session, job_id, JobStatus.QUEUED, **values, **_RELEASED):
        return False
    session.add(OutboxMessage(kind=HINT, payload={"job_id": job_id}))
    session.info[OUTBOX_WRITTEN] = True
    return True


def cancel(session: Session, job: Job) -> None:
    """Cancel a job that waits at once, and ask the worker of one that runs to stop.

    Raises InvalidRequestError when it has ended. (OpenAI's client retries a 409, so this is a 400.)
    """
    _lock_unended(session, job, "cancelled")
    if job.status != JobStatus.RUNNING:
        _cancel(session, job.id)
    else:
        _ask(session, job.id, "cancel_requested_at", "Cancellation requested")


def pause(session: Session, job: Job) -> None:
    """Put a queued job aside at once, and ask the worker of one that runs to save and let go of it.

    A job that is paused, or asked to be, stays so. Raises InvalidRequestError when it has ended or is being cancelled.
    """
    _lock_unended(session, job, "paused")
    if job.cancel_requested_at is not None:
        raise InvalidRequestError(f"Job {job.id} is being cancelled and can't be paused.", code="job_cancelling")
    if job.status == JobStatus.QUEUED:
        _pause(session, job.id)
    elif job.status == JobStatus.RUNNING and job.pause_requested_at is None:
        _ask(session, job.id, "pause_requested_at", "Pause requested")


def resume(session: Session, job: Job) -> None:
    """Queue a paused job again, or take back a pause that its worker has not yet carried out.

    A job that waits or runs already stays as it is. Raises InvalidRequestError when it has ended.
    """
    _lock_unended(session, job, "resumed")
    if job.status == JobStatus.PAUSED:
        _queue(session, job.id)
        add_event(session, job.id, "Job resumed")
    elif job.pause_requested_at is not None:
        job.pause_requested_at = None
        add_event(session, job.id, "Pause withdrawn")


def _lock_unended(session: Session, job: Job, verb: str) -> None:
    """Lock the job's row, so that it stays as it is seen. Raises InvalidRequestError when it has ended."""
    session.refresh(job, with_for_update=True)
    if job.status in ENDED:
        already = "been cancelled" if job.status == JobStatus.CANCELLED else str(job.status)
        raise InvalidRequestError(f"Job {job.id} has already {already} and can't be {verb}.", code="job_ended")


def _ask(session: Session, job_id: str, column: str, message: str) -> None:
    """Leave a request for the worker's next heartbeat; the row is locked."""
    session.execute(
        update(Job)
        .where(Job.id == job_id)
        .values({column: func.coalesce(getattr(Job, column), db_now())})
        .execution_options(synchronize_session=False)
    )
    session.expire_all()
    add_event(session, job_id, message)


def _cancel(session: Session, job_id: str, where: ColumnElement[bool] | None = None) -> bool:
    moved = _move(session, job_id, JobStatus.CANCELLED, where=where, finished_at=db_now(), **_RELEASED)
    if moved:
        add_event(session, job_id, "Job cancelled")
    return moved


def _pause(
    session: Session, job_id: str, where: ColumnElement[bool] | None = None, why: str = "", **values: Any
) -> bool:
    values |= {"pause_requested_at": None, "estimated_finish": None}
    moved = _move(session, job_id, JobStatus.PAUSED, where=where, **values, **_RELEASED)
    if moved:
        add_event(session, job_id, f"Job paused{why}")
    return moved


# --- A worker's side -------------------------------------------------------------------------------------------------


def claim(session: Session, owner: str, lease_seconds: float, gpus: int = 1) -> Claim | None:
    """Take the first queued job that asks for at most ``gpus``, or None.

    On PostgreSQL, workers that claim at once skip each other's rows.
    """
    first = (
        select(Job.id)
        .where(Job.status == JobStatus.QUEUED, Job.gpus <= gpus)
        .order_by(Job.priority, Job.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    job_id = session.scalar(first)
    if job_id is None:
        return None
    taken = _move(
        session,
        job_id,
        JobStatus.RUNNING,
        lease_owner=owner,
        lease_epoch=Job.lease_epoch + 1,
        attempt=Job.attempt + 1,
        lease_expires_at=db_now() + lease_seconds,
        last_progress_at=db_now(),
        started_at=func.coalesce(Job.started_at, db_now()),
    )
    if not taken:  # only on an engine without FOR UPDATE, and there the write lock is held: cannot happen twice
        return None
    job = session.get_one(Job, job_id)
    add_event(session, job_id, "Job started" if job.attempt == 1 else f"Job started again, attempt {job.attempt}")
    return Claim(job_id, JobKind(job.kind), job.lease_epoch, job.attempt, owner)


def _mine(claim: Claim) -> ColumnElement[bool]:
    return and_(Job.lease_epoch == claim.epoch, Job.status == JobStatus.RUNNING)


def write_as(session: Session, claim: Claim, **values: Any) -> Job:
    """Begin a worker's write: lock the job's row if the claim still holds, and set ``values``.

    Everything else in the same transaction is then safe: no other worker can claim the job before the commit.
    Raises LeaseLostError when the claim no longer holds; the transaction must then be rolled back.
    """
    changed = session.execute(
        update(Job)
        .where(Job.id == claim.job_id, _mine(claim))
        .values(**(values or {"lease_epoch": claim.epoch}))
        .execution_options(synchronize_session=False)
    )
    if _matched(changed) != 1:
        raise LeaseLostError(claim.job_id)
    session.expire_all()
    return session.get_one(Job, claim.job_id)


def heartbeat(session: Session, claim: Claim, lease_seconds: float, *, progressed: bool = False) -> Orders:
    """Renew the lease, tell of progress, and fetch orders. Raises LeaseLostError."""
    values: dict[str, Any] = {"last_progress_at": db_now()} if progressed else {}
    job = write_as(session, claim, lease_expires_at=db_now() + lease_seconds, **values)
    return Orders(cancel=job.cancel_requested_at is not None, pause=job.pause_requested_at is not None)


def record_step(
    session: Session,
    claim: Claim,
    step: int,
    metrics: dict[str, float],
    *,
    total_steps: int | None = None,
    estimated_finish: float | None = None,
) -> None:
    """Store a step's figures; they add to, or replace, what is there for the step. Raises LeaseLostError."""
    values: dict[str, Any] = {"step": step, "last_progress_at": db_now()}
    if total_steps is not None:
        values["total_steps"] = total_steps
    if estimated_finish is not None:
        values["estimated_finish"] = estimated_finish
    write_as(session, claim, **values)
    row = session.get(StepMetric, (claim.job_id, step))
    if row is None:
        row = StepMetric(job_id=claim.job_id, step=step)
        session.add(row)
    row.attempt = claim.attempt
    for name, value in metrics.items():
        if "reward_" not in name:
            setattr(row, name, value)
    rewards = {name: value for name, value in metrics.items() if "reward_" in name}
    if rewards:
        row.rewards = {**(row.rewards or {}), **rewards}


def record_checkpoint(session: Session, claim: Claim, checkpoint: Checkpoint) -> None:
    """Commit a checkpoint whose zip is in storage; one of an earlier attempt at the same step gives way."""
    write_as(session, claim)
    session.execute(delete(Checkpoint).where(Checkpoint.job_id == claim.job_id, Checkpoint.step == checkpoint.step))
    session.add(checkpoint)
    add_event(session, claim.job_id, f"Checkpoint created at step {checkpoint.step}")


def rewind(session: Session, claim: Claim, step: int) -> None:
    """Drop the figures of steps after ``step``: the attempt starts there and will write them again."""
    write_as(session, claim, step=step)
    session.execute(delete(StepMetric).where(StepMetric.job_id == claim.job_id, StepMetric.step > step))
    add_event(session, claim.job_id, f"Resumed from the checkpoint at step {step}" if step else "Started from step 0")


def keep_answer(session: Session, claim: Claim, side: str, position: int, answer: dict[str, Any]) -> None:
    """Keep an answer of an evaluation for the attempt that may go on from here. Raises LeaseLostError."""
    write_as(session, claim)
    session.merge(KeptAnswer(job_id=claim.job_id, side=side, position=position, answer=answer))


def keep_grades(session: Session, claim: Claim, side: str, position: int, grades: list[dict[str, Any]]) -> None:
    """Keep an answer's grades beside it, if it is there. Raises LeaseLostError."""
    write_as(session, claim)
    row = session.get(KeptAnswer, (claim.job_id, side, position))
    if row is not None:
        row.grades = {"grades": grades}


def kept_answers(session: Session, job_id: str) -> list[KeptAnswer]:
    """What earlier attempts of an evaluation have answered."""
    query = select(KeptAnswer).where(KeptAnswer.job_id == job_id).order_by(KeptAnswer.side, KeptAnswer.position)
    return list(session.scalars(query))


def last_checkpoint(session: Session, job_id: str) -> Checkpoint | None:
    """The newest checkpoint of a job."""
    query = select(Checkpoint).where(Checkpoint.job_id == job_id).order_by(Checkpoint.step.desc()).limit(1)
    return session.scalar(query)


def succeed(session: Session, claim: Claim, artifacts: list[File], **values: Any) -> None:
    """End a job well: its artifacts, its status and its last event become visible together. Raises LeaseLostError."""
    write_as(session, claim)
    session.add_all(artifacts)
    session.flush()
    moved = _move(
        session, claim.job_id, JobStatus.SUCCEEDED, where=_mine(claim), finished_at=db_now(), **values, **_RELEASED
    )
    if not moved:
        raise LeaseLostError(claim.job_id)
    add_event(session, claim.job_id, "The job has successfully completed")


def fail(session: Session, claim: Claim, error: HoneError) -> None:
    """End a job that can't go on. Raises LeaseLostError."""
    if not _fail(session, claim.job_id, error, where=_mine(claim)):
        raise LeaseLostError(claim.job_id)


def _fail(session: Session, job_id: str, error: HoneError, where: ColumnElement[bool]) -> bool:
    moved = _move(
        session,
        job_id,
        JobStatus.FAILED,
        where=where,
        finished_at=db_now(),
        error_code=error.code or error.type,
        error_message=error.message,
        error_param=error.param,
        **_RELEASED,
    )
    if moved:
        add_event(session, job_id, error.message, level="error")
    return moved


def confirm_cancelled(session: Session, claim: Claim) -> None:
    """End a job whose child was stopped on request. Raises LeaseLostError."""
    if not _cancel(session, claim.job_id, where=_mine(claim)):
        raise LeaseLostError(claim.job_id)


def hand_back(session: Session, claim: Claim, reason: str, *, count_attempt: bool, max_attempts: int) -> None:
    """Let go of a job: after a crash (which counts as an attempt), or when told to stop (which does not).

    Where it goes, ``_release`` says. Raises LeaseLostError.
    """
    job = write_as(session, claim)
    _release(session, job, reason, where=_mine(claim), count_attempt=count_attempt, max_attempts=max_attempts)


def _release(
    session: Session, job: Job, reason: str, *, where: ColumnElement[bool], count_attempt: bool, max_attempts: int
) -> bool:
    """Move a job away from its worker, to where the first of these that holds leads; False when no row matched.

    A cancel was asked for: cancelled. Its attempts are used up: failed. A pause was asked for: paused. Else: queued.
    """
    if job.cancel_requested_at is not None:
        return _cancel(session, job.id, where)
    if count_attempt and job.attempt >= max_attempts:
        return _fail(session, job.id, _worker_lost(job.attempt, reason), where)
    attempt = Job.attempt if count_attempt else Job.attempt - 1
    if job.pause_requested_at is not None:
        why = f": {reason}" if count_attempt else ""
        return _pause(session, job.id, where, why, attempt=attempt)
    moved = _queue(session, job.id, where=where, attempt=attempt)
    if moved:
        add_event(session, job.id, f"Job queued again: {reason}", level="warn")
    return moved


def _worker_lost(attempts: int, reason: str) -> HoneError:
    return HoneError(
        f"The job was given up after {attempts} attempts; the last one ended because {reason}. "
        "Look into the worker's log, then submit it again.",
        code="worker_lost",
    )


# --- The reaper's side -----------------------------------------------------------------------------------------------


def reap(session: Session, max_attempts: int) -> list[str]:
    """Take jobs whose lease has run out from their workers: back into the queue, or failed after ``max_attempts``.

    Returns the ids of the jobs that were taken. Any number of processes may do this at once.
    """
    expired = and_(Job.status == JobStatus.RUNNING, Job.lease_expires_at < db_now())
    lost = session.scalars(select(Job).where(expired).with_for_update(skip_locked=True)).all()
    how: dict[str, Any] = {"where": expired, "count_attempt": True, "max_attempts": max_attempts}
    return [job.id for job in lost if _release(session, job, "its worker stopped answering", **how)]


# --- Reading ---------------------------------------------------------------------------------------------------------


#: Made once: building it and its cache key would cost as much as PostgreSQL takes to answer.
_GET_JOB = select(Job).where(
    Job.id == bindparam("id"), Job.project_id == bindparam("project_id"), Job.kind == bindparam("kind")
)


def get_job(session: Session, project_id: str, job_id: str, kind: JobKind) -> Job:
    """A project's job. Raises NotFoundError for another project's as for none."""
    job = session.scalar(_GET_JOB, {"id": job_id, "project_id": project_id, "kind": kind})
    if job is None:
        raise NotFoundError(f"No job {job_id!r:.80} exists in this project.", code="not_found")
    return job


def has_ended(job: Job) -> bool:
    """Whether a job has reached a status that it can't leave."""
    return job.status in ENDED


def replace_items(session: Session, claim: Claim, run: EvalRun, items: list[EvalOutputItem]) -> None:
    """Store a run's items, in place of those of an attempt that was lost. Raises LeaseLostError."""
    write_as(session, claim)
    session.execute(delete(EvalOutputItem).where(EvalOutputItem.run_id == run.id))
    session.add_all(items)
