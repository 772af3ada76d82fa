"""One attempt, from a claim to its end: prepare, start the child, write down what it says, end the job.

Two threads share the work. This one follows the child and writes; the claim's heart (worker/heart.py) renews the lease
and stops the child. Every write is guarded by the claim's epoch, so a worker that was replaced changes nothing.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from pydantic import ValidationError
from sqlalchemy.exc import InterfaceError, OperationalError

from core.disk import disk_full
from core.errors import HoneError, TrainingError
from core.logging import get_logger
from core.settings import Settings
from core.storage import Storage
from models import lifecycle
from models.database import Database
from models.lifecycle import Claim, LeaseLostError
from models.status import JobKind
from worker import bundles
from worker.bundles import BundleError
from worker.checkpoints import MANIFEST
from worker.child import Child
from worker.finish import STORAGE_ERRORS, Ending, finish, object_key
from worker.heart import Heart, Stop
from worker.host import Host, Order, Running, base_of, gpus_of
from worker.protocol import (
    Answered,
    Done,
    Event,
    ExitCode,
    Failed,
    Graded,
    Line,
    Progress,
    Replanned,
    Saved,
    Started,
    Step,
    parse_line,
)
from worker.record import Entry, StoredCheckpoint, record, storable
from worker.workspace import Preparation, Workspace, open_workspace

log = get_logger(__name__)

#: The start of a child's command; its input file and its output folder follow.
Command = Callable[[JobKind], list[str]]

#: A child has no use for these, and what it does not have it can't leak.
_SECRETS = ("HONE_API_KEY", "HONE_DATABASE_URL", "HONE_REDIS_URL", "HONE_STORAGE_URL", "HONE_WANDB_API_KEY")
#: Compiled matmuls that PyTorch keeps on a processor.
_KEPT_PROGRAMS = "64"
#: Bytes of a crashed child's standard error that are looked at.
_TAIL = 4096
#: Longest pause, in seconds, between two tries to write while the database is away.
_LONGEST_PAUSE = 10.0


def child_command(kind: JobKind) -> list[str]:
    """The command of the real children."""
    return [sys.executable, "-m", "worker.train" if kind == JobKind.FINE_TUNE else "worker.evaluate"]


def child_variables(settings: Settings) -> dict[str, str]:
    """Variables of a child: compiled kernels stay for the next one, and the GPU's memory does not fall into pieces.

    A processor's bfloat16 matmuls are compiled for each shape, and every pass has another number of tokens: of the
    1,024 programs that PyTorch keeps, of a megabyte or two, few are used again. A pass has some twenty shapes.
    """
    folder = settings.home / "cache"
    return {
        "LRU_CACHE_CAPACITY": _KEPT_PROGRAMS,
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": _KEPT_PROGRAMS,
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        "TRITON_CACHE_DIR": str(folder / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "CUDA_CACHE_PATH": str(folder / "cuda"),
    }


def wandb_variables(settings: Settings) -> dict[str, str]:
    """The key of W&B and its server, as wandb reads them; nothing without a key. No file holds the key."""
    if settings.wandb_key is None:
        return {}
    server = {"WANDB_BASE_URL": settings.wandb_base_url} if settings.wandb_base_url else {}
    return {"WANDB_API_KEY": settings.wandb_key, **server}


def environment(settings: Settings, kind: JobKind) -> dict[str, str]:
    """The variables of a job's process: the same for all jobs of a kind, since the warm process sees many."""
    env = {name: value for name, value in os.environ.items() if name not in _SECRETS} | child_variables(settings)
    return env | wandb_variables(settings) if kind == JobKind.FINE_TUNE else env


class Attempt:
    """One run of a claimed job."""

    def __init__(
        self,
        claim: Claim,
        database: Database,
        storage: Storage,
        settings: Settings,
        command: Command = child_command,
        host: Host | None = None,
    ) -> None:
        self._host = host
        self._claim = claim
        self._database = database
        self._storage = storage
        self._settings = settings
        self._command = command
        self._heart = Heart(database, claim, settings)
        self._done: Done | None = None
        self._failed: Failed | None = None
        self._log = log.bind(job=claim.job_id, attempt=claim.attempt, epoch=claim.epoch)

    def drain(self) -> None:
        """Have the child save and stop, and the job handed back. May be called from a signal handler."""
        self._heart.drain()

    def run(self) -> None:
        """Carry the attempt out. However it goes, the job has left this worker at the end."""
        self._log.info("attempt started", kind=str(self._claim.kind))
        with self._heart:
            try:
                self._write(self._carry_out())
            except LeaseLostError:
                self._log.warning("lease lost, attempt abandoned")
        self._log.info("attempt ended")

    def _carry_out(self) -> Ending:
        """Everything but the last transaction, which is returned."""
        try:
            with open_workspace(self._settings, self._claim) as space:
                return self._work(space)
        except LeaseLostError:
            raise
        except HoneError as error:
            return self._fail(error)
        except Exception as error:
            self._log.exception("attempt broke off")
            if (full := disk_full(error)) is not None:
                return self._fail(full)
            return self._hand_back(f"the worker met an error: {type(error).__name__}: {error}", count_attempt=True)

    def _work(self, space: Workspace) -> Ending:
        preparation = Preparation(self._database, self._storage, self._settings, self._claim, space)
        self._patiently(preparation.prepare)
        self._record([Event(message=message, level="warn") for message in preparation.warnings])
        if self._heart.stop is not None:
            return self._stopped()
        child = self._start(space)
        try:
            self._heart.attach(child)
            self._follow(child, space)
        finally:
            child.kill()
            exit_code = child.wait()
        return self._outcome(exit_code, space)

    # --- While it runs ------------------------------------------------------------------------------------------------

    def _start(self, space: Workspace) -> Running:
        """The job's process: for training the warm one, if the worker keeps one; anything else has the GPU alone."""
        env = environment(self._settings, self._claim.kind)
        gpus = gpus_of(space.input) if self._claim.kind == JobKind.FINE_TUNE else 1
        if self._host is not None and self._claim.kind == JobKind.FINE_TUNE and gpus == 1:
            return self._host.start(Order.of(space), base_of(space.input), env)
        if self._host is not None:
            self._host.close()
        argv = [*self._command(self._claim.kind), str(space.input), str(space.out)]
        return Child(argv, stderr=space.stderr, env=env)

    def _follow(self, child: Running, space: Workspace) -> None:
        while (batch := child.take()) is not None:
            entries: list[Entry] = []
            for line in filter(None, map(self._parse, batch)):
                match line:
                    case Saved() if self._heart.stop is Stop.CANCELLED:
                        continue  # nobody will go on from it
                    case Saved():
                        self._record(entries)  # before the upload, which may take a while
                        entries = [self._store_checkpoint(line, space)]
                    case Done():
                        self._done = line
                        child.end_within(self._settings.cancel_grace_seconds)
                    case Failed():
                        self._failed = line
                        child.end_within(self._settings.cancel_grace_seconds)
                    case Started() | Replanned() | Step() | Progress() | Event() | Answered() | Graded():
                        entries.append(line)
            self._record(entries)

    def _parse(self, raw: bytes) -> Line | None:
        try:
            line: Line = parse_line(raw.decode("utf-8", "replace"))
        except ValidationError:
            self._log.warning("not a line of the protocol", line=raw[:200].decode("utf-8", "replace"))
            return None
        return line

    def _store_checkpoint(self, line: Saved, space: Workspace) -> Entry:
        """Put a checkpoint's folder into storage. One that can't be stored is no reason to stop training."""
        folder = space.out / Path(line.folder).name
        key = object_key(self._claim, f"checkpoint-{line.step}.zip")
        try:
            names = bundles.verify(folder)
            stored = self._storage.put(key, bundles.pack(folder, [*names, MANIFEST]))
        except (BundleError, *STORAGE_ERRORS) as error:
            self._log.warning("checkpoint not stored", step=line.step, error=str(error))
            return Event(message=f"The checkpoint at step {line.step} could not be stored: {error}", level="warn")
        return StoredCheckpoint(line, stored)

    def _record(self, entries: Sequence[Entry]) -> None:
        if entries:
            self._write(lambda session: record(session, self._claim, entries))

    def _write(self, work: Ending) -> None:
        """Commit ``work``. Raises LeaseLostError."""

        def commit() -> None:
            with self._database.write() as session:
                work(session)

        self._patiently(commit)

    def _patiently(self, work: Callable[[], None]) -> None:
        """Do ``work``, and again for as long as the database is away; meanwhile the child's lines wait in memory."""
        pause = 0.1
        while True:
            try:
                return work()
            except (OperationalError, InterfaceError) as error:
                self._log.warning("database away, trying again", seconds=pause, error=str(error.orig))
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    # --- How it ends --------------------------------------------------------------------------------------------------

    def _outcome(self, exit_code: int, space: Workspace) -> Ending:
        """The first that applies. A result that was reached counts, even if a cancel or a drain came on its heels."""
        if self._heart.stop is Stop.LOST:
            raise LeaseLostError(self._claim.job_id)
        if self._done is not None:
            return finish(self._storage, self._claim, space, self._done)
        if self._failed is not None:
            failed = self._failed
            return self._fail(TrainingError(storable(failed.message), param=failed.param, code=failed.code))
        if self._heart.stop is Stop.STALLED:
            stalled = f"it stalled: it made no progress for {self._settings.stall_seconds:g} seconds and was killed"
            return self._hand_back(stalled, count_attempt=True)
        told_to_stop = exit_code in (ExitCode.STOPPED, -15, -9)
        if self._heart.stop is Stop.CANCELLED or (self._heart.stop is not None and told_to_stop):
            return self._stopped()
        tail = _tail(space.stderr)
        self._log.error("child crashed", exit_code=exit_code, stderr=tail)
        return self._hand_back(describe_crash(exit_code, tail), count_attempt=True)

    def _stopped(self) -> Ending:
        if self._heart.stop is Stop.LOST:
            raise LeaseLostError(self._claim.job_id)
        if self._heart.stop is Stop.CANCELLED:
            return partial(lifecycle.confirm_cancelled, claim=self._claim)
        # Whether it is to be paused its row says; the pause may have been withdrawn since.
        reason = "its pause was withdrawn" if self._heart.stop is Stop.PAUSED else "its worker was told to stop"
        return self._hand_back(reason, count_attempt=False)

    def _fail(self, error: HoneError) -> Ending:
        return partial(lifecycle.fail, claim=self._claim, error=error)

    def _hand_back(self, reason: str, *, count_attempt: bool) -> Ending:
        return partial(
            lifecycle.hand_back,
            claim=self._claim,
            reason=storable(reason),
            count_attempt=count_attempt,
            max_attempts=self._settings.max_attempts,
        )


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        return file.read().decode("utf-8", "replace").strip()


def describe_crash(exit_code: int, stderr: str) -> str:
    """Why a child ended without a result, in one clause for a user."""
    if exit_code == -9:
        return "its process was killed by signal 9 (out of memory?)"
    if exit_code < 0:
        return f"its process was killed by signal {-exit_code}"
    last = stderr.splitlines()[-1].strip() if stderr else ""
    said = f" ({last:.300})" if last else ""
    return f"its process ended with exit code {exit_code} and without a result{said}"
