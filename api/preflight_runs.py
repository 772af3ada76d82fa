"""Preflights as they run: a row that is polled, and a child process that fills it."""

import hashlib
import json
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import IO, Any
from uuid import uuid4

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError

from api.base_cards import BaseCards
from core.card_making import NoCardError
from core.logging import get_logger
from core.preflight_child import Order
from core.settings import Settings
from core.specs import PromptTemplate
from models.base import db_now
from models.database import Database
from models.tables import Preflight

log = get_logger(__name__)

#: A pass that has told nothing for so long is dead: its API process is gone.
STALE_SECONDS = 120
#: Children at once in one API process; each takes a core.
_AT_ONCE = 1
#: Seconds between two signs of life while a pass waits for its turn.
_TOUCH_SECONDS = 10.0


@dataclass(frozen=True)
class Asked:
    """One file, and one way to make tokens of it. Without ``model``, characters are counted."""

    file_id: str
    file_key: str
    model: str | None
    template: PromptTemplate | None
    system_prompt: str | None
    validation_id: str | None
    validation_key: str | None

    def key(self, cards: BaseCards) -> str:
        """A hash of the way; another entry of the catalogue under the same name is another way."""
        card = cards.key(self.model) if self.model else None
        way = [card, self.template, self.system_prompt, self.validation_id]
        return hashlib.sha256(json.dumps(way).encode()).hexdigest()


class PreflightRuns:
    """Starts passes, each in a thread that watches its child."""

    def __init__(self, database: Database, cards: BaseCards, settings: Settings) -> None:
        self._database = database
        self._cards = cards
        self._settings = settings
        self._slots = threading.Semaphore(_AT_ONCE)
        self._stopping = threading.Event()
        self._children: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()

    def look(self, asked: Asked) -> Preflight:
        """The row of what was asked; when there is none, or its pass is dead or can be bettered, one is started."""
        key = asked.key(self._cards)
        with self._database.read() as session:
            row = session.get(Preflight, (asked.file_id, key))
            now = session.scalar(select(db_now())) or 0.0
        if row is not None and not self._is_stale(row, now) and not self._has_tokens_now(row, asked):
            return row
        run = uuid4().hex
        try:
            taken = self._take(asked, key, row, run)
        except IntegrityError:  # another request made the row
            with self._database.read() as session:
                return session.get_one(Preflight, (asked.file_id, key))
        if taken.run == run:
            work = threading.Thread(target=self._carry_out, args=(asked, key, run), name="preflight", daemon=True)
            work.start()
        return taken

    def _take(self, asked: Asked, key: str, seen: Preflight | None, run: str) -> Preflight:
        """Make the row this run's, unless another request was faster."""
        with self._database.write() as session:
            taken = session.get(Preflight, (asked.file_id, key), with_for_update=True)
            if taken is None:
                taken = Preflight(file_id=asked.file_id, key=key, run=run)
                session.add(taken)
            elif seen is None or taken.run != seen.run:
                return taken
            else:
                taken.status, taken.run, taken.bytes, taken.samples = "running", run, 0, 0
                taken.updated_at = db_now()
            session.flush()
            session.refresh(taken)
            return taken

    def stop(self) -> None:
        """Kill the children; their rows go stale and are taken up by who asks next."""
        self._stopping.set()
        with self._lock:
            for child in self._children:
                child.kill()

    def _is_stale(self, row: Preflight, now: float) -> bool:
        return row.status == "running" and now - row.updated_at > STALE_SECONDS

    def _has_tokens_now(self, row: Preflight, asked: Asked) -> bool:
        """Whether a pass that had to count characters could count tokens by now."""
        counted = row.status == "completed" and row.found is not None and row.found["unit"] == "characters"
        return counted and asked.model is not None and self._cards.find(asked.model) is not None

    def _carry_out(self, asked: Asked, key: str, run: str) -> None:
        row = _Row(self._database, asked.file_id, key, run)
        try:
            while not self._slots.acquire(timeout=_TOUCH_SECONDS):
                if self._stopping.is_set() or not row.write():
                    return
            try:
                self._examine(asked, row)
            finally:
                self._slots.release()
        except Exception:
            if self._stopping.is_set():
                return
            log.exception("preflight_failed", file=asked.file_id)
            row.write(status="failed", error="The server met an unexpected error. Its log has the details.")

    def _examine(self, asked: Asked, row: "_Row") -> None:
        note, card_key = None, None
        if asked.model is not None:
            try:
                self._cards.get(asked.model)
                card_key = self._cards.key(asked.model)
            except NoCardError as error:
                note = f"{error.message} Lengths are in characters."
        order = Order(
            storage_url=self._settings.resolved_storage_url,
            file_key=asked.file_key,
            validation_key=asked.validation_key,
            card_key=card_key,
            template=asked.template,
            system_prompt=asked.system_prompt,
            max_line_bytes=self._settings.max_line_bytes,
        )
        if not row.write(started_at=db_now()):
            return
        found = self._run_child(order, row)
        if found is not None:
            samples = found["samples"]
            row.write(status="completed", found=found, note=note, samples=samples, error=None)

    def _run_child(self, order: Order, row: "_Row") -> dict[str, Any] | None:
        """What the child found; None when nobody wants it any more. Raises HoneError when the child died."""
        with subprocess.Popen(  # our own command
            [sys.executable, "-m", "core.preflight_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as child:
            with self._lock:
                self._children.add(child)
            try:
                assert child.stdin is not None
                assert child.stdout is not None
                assert child.stderr is not None
                child.stdin.write(order.model_dump_json().encode())
                child.stdin.close()
                found = self._follow(child.stdout, row)
                if found is None:
                    child.kill()
                    said = child.stderr.read()[-1000:].decode("utf-8", "replace")
            finally:
                with self._lock:
                    self._children.discard(child)
        if found is None and row.wanted and not self._stopping.is_set():
            log.error("preflight_child_died", code=child.returncode, said=said)
            message = "The dataset could not be looked through: its reader ran out of memory or time."
            row.write(status="failed", error=message)
        return found

    def _follow(self, lines: IO[bytes], row: "_Row") -> dict[str, Any] | None:
        for text in lines:
            told = json.loads(text)
            if "found" in told:
                found: dict[str, Any] = told["found"]
                return found
            if not row.write(bytes=told["bytes"], samples=told["samples"]):
                return None
        return None


class _Row:
    """The row of a pass, while it is this pass's."""

    def __init__(self, database: Database, file_id: str, key: str, run: str) -> None:
        self._database = database
        self._mine = (Preflight.file_id == file_id, Preflight.key == key, Preflight.run == run)
        self.wanted = True

    def write(self, **values: Any) -> bool:
        """Write, and give a sign of life; False when the file is gone or another pass has taken over."""
        change = update(Preflight).where(*self._mine).values(**values, updated_at=db_now())
        with self._database.write() as session:
            changed = session.execute(change.returning(Preflight.key).execution_options(synchronize_session=False))
            self.wanted = changed.first() is not None
        return self.wanted
