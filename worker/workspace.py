"""The folder of one attempt: what the child reads and where it writes.

``work/{job}/{attempt}-{epoch}`` in HONE_HOME:
    lock         held for as long as the attempt lives
    input.json   worker.protocol's TrainingInput or EvaluationInput
    train.jsonl  validation.jsonl  items.jsonl  kept.jsonl  adapter/  resume/
    out/         the child's
    stderr.log   the child's
"""

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.catalogue import find_base_model, load_catalogue
from core.errors import HoneError, TrainingError
from core.logging import get_logger
from core.plan import MemoryPlan
from core.settings import Settings
from core.specs import EvaluationSpec, FineTuneSpec
from core.storage import Storage
from models import lifecycle
from models.access import find_model, model_name
from models.database import Database
from models.lifecycle import Claim
from models.status import JobKind
from models.tables import Checkpoint, File, Job, KeptAnswer, Project
from worker import bundles
from worker.bundles import BundleError
from worker.checkpoints import MANIFEST
from worker.kept import write_kept
from worker.protocol import EvaluationInput, TrainingInput

log = get_logger(__name__)


@dataclass(frozen=True)
class Workspace:
    """The paths of an attempt's folder."""

    folder: Path

    @property
    def input(self) -> Path:
        """The child's first argument."""
        return self.folder / "input.json"

    @property
    def out(self) -> Path:
        """The child's second argument."""
        return self.folder / "out"

    @property
    def stderr(self) -> Path:
        """What the child says on standard error."""
        return self.folder / "stderr.log"


@contextmanager
def open_workspace(settings: Settings, claim: Claim) -> Iterator[Workspace]:
    """An empty folder for an attempt; removed at the end."""
    root = _root(settings)
    space = Workspace(root / claim.job_id / f"{claim.attempt}-{claim.epoch}")
    with _locked(root / "lock"):  # so that a sweep can't meet a folder between its making and its lock
        shutil.rmtree(space.folder, ignore_errors=True)
        space.out.mkdir(parents=True)
        held = _try_lock(space.folder / "lock")
    try:
        yield space
    finally:
        with _locked(root / "lock"):
            _remove(space.folder)
        if held is not None:
            held.close()


def sweep(settings: Settings) -> None:
    """Remove the folders of attempts whose worker is gone."""
    root = _root(settings)
    with _locked(root / "lock"):
        for folder in root.glob("*/*/"):
            if (held := _try_lock(folder / "lock")) is None:
                continue
            with held:
                log.info("removed a dead attempt's folder", folder=str(folder))
                _remove(folder)


def _root(settings: Settings) -> Path:
    root = settings.home / "work"
    root.mkdir(parents=True, exist_ok=True)
    return root


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _try_lock(path: Path) -> IO[bytes] | None:
    """Lock a file until it is closed; None when another process has it."""
    file = path.open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _remove(folder: Path) -> None:
    """Remove an attempt's folder, and its job's when that was the last."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.parent.is_dir() and not any(folder.parent.iterdir()):
        folder.parent.rmdir()


class Preparation:
    """Fills a workspace for one claim. ``warnings`` collects what the user should know of."""

    def __init__(
        self, database: Database, storage: Storage, settings: Settings, claim: Claim, space: Workspace
    ) -> None:
        self.warnings: list[str] = []
        self._database = database
        self._storage = storage
        self._settings = settings
        self._claim = claim
        self._folder = space.folder
        self._input = space.input

    def prepare(self) -> None:
        """Fetch all that the child needs and write its input. Raises HoneError for what trying again would not mend."""
        prepare = self._training if self._claim.kind == JobKind.FINE_TUNE else self._evaluation
        self._input.write_text(prepare().model_dump_json(indent=2), encoding="utf-8")

    def _training(self) -> TrainingInput:
        with self._database.read() as session:
            job = session.get_one(Job, self._claim.job_id)
            spec = FineTuneSpec.model_validate(job.spec)
            project = session.get_one(Project, job.project_id)
            training = self._find_file(session, job.project_id, spec.training_file, "training_file")
            validation = spec.validation_file and self._find_file(
                session, job.project_id, spec.validation_file, "validation_file"
            )
            checkpoints = _checkpoints(session, job.id)
            plan = (job.resolved or {}).get("plan")
        return TrainingInput(
            job_id=job.id,
            fine_tuned_model=model_name(job, project.name),
            spec=spec,
            base_model=find_base_model(load_catalogue(self._settings), spec.model),
            cache=self._settings.home / "models",
            train_file=self._fetch_dataset(training, "train.jsonl", "training_file"),
            validation_file=self._fetch_dataset(validation, "validation.jsonl", "validation_file")
            if validation
            else None,
            max_line_bytes=self._settings.max_line_bytes,
            resume_from=self._resume_from(checkpoints),
            plan=MemoryPlan.model_validate(plan) if plan else None,
        )

    def _evaluation(self) -> EvaluationInput:
        with self._database.read() as session:
            job = session.get_one(Job, self._claim.job_id)
            spec = EvaluationSpec.model_validate(job.spec)
            items = self._find_file(session, job.project_id, spec.items_file, "items_file")
            tuned = None if spec.model == spec.base_model else _find_tuned(session, job, spec.model)
            kept = lifecycle.kept_answers(session, job.id)
        template = spec.prompt_template
        asks = spec.source == "completions"
        return EvaluationInput(
            job_id=job.id,
            spec=spec,
            base_model=find_base_model(load_catalogue(self._settings), spec.base_model) if asks else None,
            cache=self._settings.home / "models",
            items_file=self._fetch_dataset(items, "items.jsonl", "items_file"),
            max_line_bytes=self._settings.max_line_bytes,
            kept=self._write_kept(kept) if kept else None,
            adapter=self._fetch_adapter(tuned) if tuned else None,
            prompt_template=tuned.template if tuned and template == "auto" else template,
        )

    def _write_kept(self, rows: list[KeptAnswer]) -> Path:
        path = self._folder / "kept.jsonl"
        found = ((row.side, row.position, row.answer, row.grades["grades"] if row.grades else None) for row in rows)
        write_kept(path, found)
        return path

    def _find_file(self, session: Session, project_id: str, file_id: str, param: str) -> File:
        found = session.scalar(select(File).where(File.id == file_id, File.project_id == project_id))
        if found is None:
            raise _missing_file(file_id, param)
        return found

    def _fetch_dataset(self, file: File | Checkpoint, name: str, param: str) -> Path:
        path = self._folder / name
        try:
            self._fetch(file.storage_key, file.sha256, path)
        except FileNotFoundError:
            raise _missing_file(file.id, param) from None
        except BundleError as error:
            raise _damaged_file(file.id, param, error) from error
        return path

    def _fetch_adapter(self, tuned: "_Tuned") -> Path:
        """The folder of an adapter; a checkpoint's manifest does not know its job's settings, so they are added."""
        archive, folder = self._fetch_dataset(tuned.adapter, "adapter.zip", "model"), self._folder / "adapter"
        try:
            bundles.unpack(archive, folder)
        except BundleError as error:
            raise _damaged_file(tuned.adapter.id, "model", error) from error
        archive.unlink()
        if isinstance(tuned.adapter, Checkpoint):
            (folder / MANIFEST).write_text(json.dumps({"spec": tuned.spec}), encoding="utf-8")
        return folder

    def _resume_from(self, checkpoints: list[Checkpoint]) -> Path | None:
        """The folder of the newest checkpoint that is whole, or None."""
        for checkpoint in checkpoints:
            archive = self._folder / "checkpoint.zip"
            folder = self._folder / "resume" / f"checkpoint-{checkpoint.step}"
            try:
                self._fetch(checkpoint.storage_key, checkpoint.sha256, archive)
                bundles.unpack(archive, folder)
                bundles.verify(folder)
            except (FileNotFoundError, BundleError) as error:
                log.warning("damaged checkpoint", job=self._claim.job_id, step=checkpoint.step, error=str(error))
                self.warnings.append(f"The checkpoint at step {checkpoint.step} is damaged ({error}) and is not used")
                shutil.rmtree(folder, ignore_errors=True)
                continue
            finally:
                archive.unlink(missing_ok=True)
            return folder
        return None

    def _fetch(self, key: str, sha256: str, path: Path) -> None:
        """Copy an object into a file. Raises FileNotFoundError, or BundleError when its SHA-256 is another."""
        digest = hashlib.sha256()
        with path.open("wb") as file:
            for chunk in self._storage.get(key):
                digest.update(chunk)
                file.write(chunk)
        if digest.hexdigest() != sha256:
            raise BundleError("its content differs from its SHA-256")


def _missing_file(file_id: str, param: str) -> HoneError:
    return TrainingError(
        f"The file {file_id} is gone. Upload it again and submit a new job.", param=param, code="file_not_found"
    )


def _damaged_file(file_id: str, param: str, error: BundleError) -> HoneError:
    return TrainingError(
        f"The file {file_id} is damaged in storage: {error}. Upload it again and submit a new job.",
        param=param,
        code="file_damaged",
    )


@dataclass(frozen=True)
class _Tuned:
    """A fine-tuned model that a job starts from: its adapter's zip, and what it was trained with."""

    adapter: File | Checkpoint
    template: str
    spec: dict[str, Any]


def _find_tuned(session: Session, job: Job, model: str) -> _Tuned:
    found = find_model(session, job.project_id, model)
    if found is None:
        raise TrainingError(f"The model {model!r:.300} is gone.", param="model", code="model_not_found")
    return _Tuned(found.adapter, found.prompt_template, session.get_one(Job, found.job_id).spec)


def _checkpoints(session: Session, job_id: str) -> list[Checkpoint]:
    """A job's checkpoints, the newest first."""
    query = select(Checkpoint).where(Checkpoint.job_id == job_id).order_by(Checkpoint.step.desc())
    return list(session.scalars(query))
