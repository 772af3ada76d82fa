"""What a child says, written into the database: one function for each type of line."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from core.storage import Stored
from models import lifecycle
from models.base import db_now
from models.lifecycle import Claim
from models.tables import Checkpoint, StepMetric
from worker.protocol import Answered, Event, Graded, Progress, Replanned, Saved, Started, Step


@dataclass(frozen=True)
class StoredCheckpoint:
    """A ``Saved`` line whose folder is in storage by now."""

    line: Saved
    stored: Stored


Entry = Started | Replanned | Step | Progress | Event | Answered | Graded | StoredCheckpoint


def storable(value: Any) -> Any:
    """The same value with every text as PostgreSQL takes it: without NUL and without halves of surrogate pairs."""
    if isinstance(value, str):
        return value.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {storable(key): storable(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [storable(entry) for entry in value]
    return value


def record(session: Session, claim: Claim, entries: Sequence[Entry]) -> None:
    """Write entries in their order, in one transaction. Raises LeaseLostError."""
    for entry in join_steps(entries):
        _WRITERS[type(entry)](session, claim, entry)


def join_steps(entries: Sequence[Entry]) -> list[Entry]:
    """Make one of neighbours that tell of the same step, such as its training's figures and its validation's."""
    joined: list[Entry] = []
    for entry in entries:
        last = joined[-1] if joined else None
        if isinstance(entry, Step) and isinstance(last, Step) and entry.step == last.step:
            joined[-1] = entry.model_copy(update={"metrics": last.metrics | entry.metrics})
        else:
            joined.append(entry)
    return joined


def _started(session: Session, claim: Claim, line: Started) -> None:
    values = {"resolved": line.resolved.model_dump(mode="json"), "report": storable(line.report)}
    lifecycle.write_as(session, claim, **values, total_steps=line.resolved.total_steps, last_progress_at=db_now())
    if claim.epoch > 1:  # an earlier claim, counted as an attempt or not, may have written steps beyond this one
        lifecycle.rewind(session, claim, line.step)


def _replanned(session: Session, claim: Claim, line: Replanned) -> None:
    lifecycle.write_as(session, claim, resolved=line.resolved.model_dump(mode="json"), last_progress_at=db_now())


def _step(session: Session, claim: Claim, line: Step) -> None:
    lifecycle.record_step(
        session,
        claim,
        line.step,
        line.metrics,
        total_steps=line.total_steps,
        estimated_finish=_finish(line.seconds_left),
    )
    row = session.get_one(StepMetric, (claim.job_id, line.step))
    message, data = _metrics_event(row, line.total_steps)
    lifecycle.add_event(session, claim.job_id, message, type="metrics", data=data)


def _metrics_event(row: StepMetric, total_steps: int) -> tuple[str, dict[str, Any]]:
    """OpenAI's words for a step. Each validation covers the whole validation file, so it is the "full" one as well."""
    figures = [
        (name, value)
        for name, value in (
            ("training loss", row.train_loss),
            ("validation loss", row.valid_loss),
            ("CodeBLEU", row.codebleu),
        )
        if value is not None
    ]
    told = ", ".join(f"{name}={value:.2f}" for name, value in figures)
    data = {
        "step": row.step,
        "total_steps": total_steps,
        "train_loss": row.train_loss,
        "train_mean_token_accuracy": row.train_accuracy,
        "valid_loss": row.valid_loss,
        "valid_mean_token_accuracy": row.valid_mean_token_accuracy,
        "full_valid_loss": row.valid_loss,
        "full_valid_mean_token_accuracy": row.valid_mean_token_accuracy,
        "codebleu": row.codebleu,
        **(row.rewards or {}),
    }
    where = f"Step {row.step}/{total_steps}"
    return (f"{where}: {told}" if told else where), {name: value for name, value in data.items() if value is not None}


def _progress(session: Session, claim: Claim, line: Progress) -> None:
    values: dict[str, Any] = {"step": line.done, "total_steps": line.total, "last_progress_at": db_now()}
    if line.seconds_left is not None:
        values["estimated_finish"] = _finish(line.seconds_left)
    lifecycle.write_as(session, claim, **values)


def _event(session: Session, claim: Claim, line: Event) -> None:
    lifecycle.write_as(session, claim)
    lifecycle.add_event(session, claim.job_id, storable(line.message), level=line.level)


def _answered(session: Session, claim: Claim, line: Answered) -> None:
    lifecycle.keep_answer(session, claim, line.side, line.position, storable(line.answer))


def _graded(session: Session, claim: Claim, line: Graded) -> None:
    lifecycle.keep_grades(session, claim, line.side, line.position, storable(line.grades))


def _checkpoint(session: Session, claim: Claim, entry: StoredCheckpoint) -> None:
    stored = entry.stored
    row = Checkpoint(
        job_id=claim.job_id,
        step=entry.line.step,
        storage_key=stored.key,
        bytes=stored.bytes,
        sha256=stored.sha256,
        metrics=entry.line.metrics,
    )
    lifecycle.record_checkpoint(session, claim, row)


def _finish(seconds_left: float | None) -> float | None:
    """When a run that takes so much longer ends; only shown, so the worker's clock will do."""
    return None if seconds_left is None else time.time() + seconds_left


_WRITERS: dict[type[Entry], Callable[[Session, Claim, Any], None]] = {
    Started: _started,
    Replanned: _replanned,
    Step: _step,
    Progress: _progress,
    Event: _event,
    Answered: _answered,
    Graded: _graded,
    StoredCheckpoint: _checkpoint,
}
