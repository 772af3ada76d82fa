"""Imports from the Hub as they run: a thread that takes one after the other, and a child process that does the work.

A row is the queue, the progress and the outcome. Any API process takes a queued row, and one whose own process has told
nothing for a while; what an attempt writes counts only while the row is its.
"""

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import IO, Any
from uuid import uuid4

from sqlalchemy import and_, or_, select, update
from sqlalchemy.orm import Session

from api.background import Repeating
from api.stored_files import store_file
from core.errors import HoneError
from core.hub_order import Asked, HubOrder, file_name, require_allowed
from core.logging import get_logger
from core.settings import Settings
from core.storage import CHUNK, Storage
from models.base import db_now
from models.database import Database
from models.tables import File, FileImport

log = get_logger(__name__)

#: An import that has told nothing for so long is dead: its API process is gone.
STALE_SECONDS = 60
#: As often as a worker looks for jobs; an import that this process was asked for begins at once.
_LOOK_SECONDS = 5.0
_AFTER_ERROR_SECONDS = 15.0
#: Seconds between two signs of life while the file goes into storage.
_TOUCH_SECONDS = 5.0
_MOST_ATTEMPTS = 3

_UNEXPECTED = "The server met an unexpected error. Its log has the details."


class _UnwantedError(Exception):
    """The import was cancelled, or another process has taken it."""


class _StoppedError(Exception):
    """This process is told to stop."""


class ImportRuns:
    """Carries imports out, one at a time: what takes long is the network's."""

    def __init__(self, database: Database, storage: Storage, settings: Settings) -> None:
        self.database = database
        self.storage = storage
        self._settings = settings
        self._stopping = threading.Event()
        self._child: subprocess.Popen[bytes] | None = None
        self._thread = Repeating("hone-imports", self._work, after_error=_AFTER_ERROR_SECONDS)
        self.wake = self._thread.wake

    def start(self) -> None:
        """Begin, where the operator allows any import."""
        if self._settings.allowed_hub_datasets:
            self._thread.start()

    def stop(self) -> None:
        """Kill the child; its row is queued again, for the next process that looks."""
        self._stopping.set()
        if (child := self._child) is not None:
            child.kill()
        if self._settings.allowed_hub_datasets:
            self._thread.stop()

    def _work(self) -> float:
        if self._stopping.is_set():
            return _LOOK_SECONDS
        with self.database.write() as session:
            taken = _claim(session)
        if taken is None:
            return _LOOK_SECONDS
        attempt = _Attempt(self.database, taken)
        try:
            self._carry_out(Asked.model_validate(taken.asked), taken.project_id, attempt)
        except _StoppedError:
            attempt.hand_back()
        except _UnwantedError:
            log.info("import_given_up", id=taken.id)
        except HoneError as error:
            attempt.fail(error)
        except Exception:
            log.exception("import_failed", id=taken.id)
            attempt.fail(HoneError(_UNEXPECTED, code="internal_error"))
        return 0

    def _carry_out(self, asked: Asked, project_id: str, attempt: "_Attempt") -> None:
        require_allowed(self._settings, asked.dataset)
        with tempfile.TemporaryFile() as out:
            done = self._run_child(self._order(asked, out.fileno()), attempt)
            source = done["source"]
            store_file(
                self,
                project_id,
                attempt.while_wanted(out),
                filename=file_name(asked.dataset, source["config"], source["split"]),
                purpose=asked.purpose,
                report=done["report"],
                source=source,
                together=attempt.complete,
            )

    def _order(self, asked: Asked, out_fd: int) -> HubOrder:
        settings = self._settings
        return HubOrder(
            **asked.model_dump(),
            max_line_bytes=settings.max_line_bytes,
            max_file_bytes=settings.max_file_bytes,
            out_fd=out_fd,
        )

    def _run_child(self, order: HubOrder, attempt: "_Attempt") -> dict[str, Any]:
        """What the child says when it is done. Raises HoneError, and _UnwantedError."""
        with tempfile.TemporaryFile() as said, _started(order, said) as child:
            self._child = child
            try:
                assert child.stdout is not None
                if self._stopping.is_set():  # which may not have seen the child
                    raise _StoppedError
                done = _follow(child.stdout, attempt)
            finally:
                child.kill()
                self._child = None
            if done is not None:
                return done
            if self._stopping.is_set():
                raise _StoppedError
            said.seek(0)
            log.error("import_child_died", code=child.wait(), said=said.read()[-1000:].decode("utf-8", "replace"))
        raise HoneError("The import's process ran out of memory or time.", code="import_failed")


def _started(order: HubOrder, said: IO[bytes]) -> subprocess.Popen[bytes]:
    child = subprocess.Popen(  # our own command
        [sys.executable, "-m", "core.hub_child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=said,
        pass_fds=(order.out_fd,),
    )
    assert child.stdin is not None
    child.stdin.write(order.model_dump_json().encode())
    child.stdin.close()
    return child


def _follow(lines: IO[bytes], attempt: "_Attempt") -> dict[str, Any] | None:
    """What the child is done with; None when it died. Raises HoneError for what it tells, and _UnwantedError."""
    for text in lines:
        told = json.loads(text)
        if "done" in told:
            done: dict[str, Any] = told["done"]
            return done
        if "error" in told:
            error = HoneError(told["error"]["message"], param=told["error"]["param"], code=told["error"]["code"])
            error.details = told["error"]["details"]
            raise error
        attempt.write(**told)
    return None


def _claim(session: Session) -> FileImport | None:
    """Take the oldest import that nobody carries out; None when there is none."""
    dead = and_(FileImport.status == "running", FileImport.updated_at < db_now() - STALE_SECONDS)
    waiting = select(FileImport).where(or_(FileImport.status == "queued", dead)).order_by(FileImport.id).limit(1)
    taken = session.scalar(waiting.with_for_update(skip_locked=True))
    if taken is None:
        return None
    taken.run, taken.status, taken.updated_at = uuid4().hex, "running", db_now()
    taken.bytes = taken.total_bytes = taken.rows = 0
    taken.attempts += 1
    if taken.attempts > _MOST_ATTEMPTS:
        taken.status = "failed"
        taken.error = as_row(HoneError(f"The server stopped {_MOST_ATTEMPTS} times meanwhile.", code="import_failed"))
        return None
    session.flush()
    session.refresh(taken)
    return taken


def as_row(error: HoneError) -> dict[str, Any]:
    """An error as an import's row keeps it."""
    return {"message": error.message, "param": error.param, "code": error.code, "details": error.details}


class _Attempt:
    """The row of an import, while it is this attempt's."""

    def __init__(self, database: Database, taken: FileImport) -> None:
        self._database = database
        self._mine = (FileImport.id == taken.id, FileImport.run == taken.run, FileImport.status == "running")

    def write(self, **values: Any) -> None:
        """Write, and give a sign of life. Raises _UnwantedError."""
        with self._database.write() as session:
            self._write(session, **values)

    def complete(self, session: Session, file: File) -> None:
        """The end, in the transaction that makes the file. Raises _UnwantedError."""
        self._write(session, status="completed", file_id=file.id, error=None)

    def fail(self, error: HoneError) -> None:
        """Tell why there is no file, if anybody still waits for it."""
        try:
            self.write(status="failed", error=as_row(error))
        except _UnwantedError:
            log.info("import_given_up", code=error.code)

    def hand_back(self) -> None:
        """Queue the import again, if anybody still waits for it; this attempt does not count."""
        with contextlib.suppress(_UnwantedError):
            self.write(status="queued", attempts=FileImport.attempts - 1)

    def while_wanted(self, out: IO[bytes]) -> Iterator[bytes]:
        """The file's bytes, with a sign of life now and then. Raises _UnwantedError."""
        out.seek(0)
        last = time.monotonic()
        while chunk := out.read(CHUNK):
            yield chunk
            if time.monotonic() - last > _TOUCH_SECONDS:
                last = time.monotonic()
                self.write()

    def _write(self, session: Session, **values: Any) -> None:
        change = update(FileImport).where(*self._mine).values(**values, updated_at=db_now())
        changed = session.execute(change.returning(FileImport.id).execution_options(synchronize_session=False))
        if changed.first() is None:
            raise _UnwantedError
