"""The end of a run that went well: its artifacts go to storage, then everything becomes visible in one transaction."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from obstore.exceptions import BaseError
from sqlalchemy import select
from sqlalchemy.orm import Session

from core.errors import HoneError, TrainingError
from core.ids import new_id
from core.storage import Storage, Stored
from models import lifecycle
from models.lifecycle import Claim
from models.status import JobKind
from models.tables import EvalOutputItem, EvalRun, File, FineTunedModel, Job
from worker.protocol import Done
from worker.record import storable
from worker.workspace import Workspace

#: An attempt's last transaction.
Ending = Callable[[Session], None]

#: The artifacts of each kind of job, in the order of `result_files`.
ARTIFACTS = {
    JobKind.FINE_TUNE: ("step_metrics.csv", "adapter.zip"),
    JobKind.EVALUATION: ("scores.json", "codebleu.png", "items.jsonl"),
}
#: Purposes that OpenAI's client knows; it has none for results of an evaluation.
_PURPOSES = {JobKind.FINE_TUNE: "fine-tune-results", JobKind.EVALUATION: "user_data"}

#: What putting an object may raise: a full disk, a network that is away, a refused key.
STORAGE_ERRORS = (OSError, BaseError)


class StorageError(HoneError):
    """A result that could not be stored."""

    status = 500
    type = "server_error"


def object_key(claim: Claim, name: str) -> str:
    """Where an attempt's object lies; no two attempts share one."""
    return f"jobs/{claim.job_id}/{claim.attempt}-{claim.epoch}/{name}"


def finish(storage: Storage, claim: Claim, space: Workspace, done: Done) -> Ending:
    """Store a run's artifacts. Raises StorageError, or TrainingError when one is missing."""
    folder = space.out / "artifacts"
    stored = [_put(storage, claim, folder / name) for name in ARTIFACTS[claim.kind]]
    if claim.kind == JobKind.FINE_TUNE:
        name = json.loads(space.input.read_bytes())["fine_tuned_model"]
        return lambda session: _end_fine_tune(session, claim, stored, done, name)
    lines = _read_items(folder / "items.jsonl")
    return lambda session: _end_evaluation(session, claim, stored, done, lines)


def _put(storage: Storage, claim: Claim, path: Path) -> Stored:
    if not path.is_file():
        raise TrainingError(
            f"The run ended without its result {path.name}. Please report this.", code="artifact_missing"
        )
    try:
        return storage.put_file(object_key(claim, path.name), path)
    except STORAGE_ERRORS as error:
        raise StorageError(
            f"The result {path.name} ({path.stat().st_size:,} bytes) could not be stored: {error}. "
            "Mend the storage (is it full?), then submit the job again.",
            code="storage_error",
        ) from error


def _read_items(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        return [storable(json.loads(line)) for line in lines]


def _files(job: Job, stored: Sequence[Stored]) -> list[File]:
    return [
        File(
            id=new_id("file-"),  # rising, so that the order of ids is the order of result_files
            project_id=job.project_id,
            job_id=job.id,
            filename=Path(entry.key).name,
            purpose=_PURPOSES[JobKind(job.kind)],
            bytes=entry.bytes,
            sha256=entry.sha256,
            storage_key=entry.key,
        )
        for entry in stored
    ]


def _end_fine_tune(session: Session, claim: Claim, stored: Sequence[Stored], done: Done, name: str) -> None:
    job = lifecycle.write_as(session, claim)
    files = _files(job, stored)
    model = FineTunedModel(
        id=name,
        project_id=job.project_id,
        job_id=job.id,
        base_model=job.model,
        prompt_template=(job.resolved or {}).get("prompt_template", "auto"),
        adapter_file_id=files[-1].id,
    )
    report = (job.report or {}) | storable(done.report)
    values = {"fine_tuned_model": name, "trained_tokens": done.trained_tokens, "report": report}
    lifecycle.succeed(session, claim, files, **values)
    session.add(model)


def _end_evaluation(
    session: Session, claim: Claim, stored: Sequence[Stored], done: Done, lines: list[dict[str, Any]]
) -> None:
    job = lifecycle.write_as(session, claim)
    run = session.scalars(select(EvalRun).where(EvalRun.job_id == job.id)).one()
    lifecycle.replace_items(session, claim, run, [_item(run, line) for line in lines])
    lifecycle.succeed(session, claim, _files(job, stored), report=storable(done.report))


def _item(run: EvalRun, line: dict[str, Any]) -> EvalOutputItem:
    return EvalOutputItem(
        id=new_id("outputitem_"),
        run_id=run.id,
        position=line["position"],
        status=line["status"],
        item=line["item"],
        results={"results": line["results"]},
        sample={"prompt": line["prompt"], **line["sample"]},
        base=line["base"],
    )
