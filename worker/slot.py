"""The slot: one thread that claims jobs and carries them out, one at a time. One worker has one slot, for one GPU."""

import os
import threading
import uuid
from queue import Empty, SimpleQueue

from sqlalchemy.exc import SQLAlchemyError

from core.logging import get_logger
from core.settings import Settings
from core.storage import Storage
from models import lifecycle
from models.database import Database
from models.lifecycle import Claim
from models.status import JobKind
from worker import workspace
from worker.announce import look
from worker.host import Host, warm_command
from worker.supervise import Attempt, Command, child_command, environment

log = get_logger(__name__)

#: Longest pause, in seconds, between two looks for work while the database is away.
_LONGEST_PAUSE = 30.0


class Slot:
    """Looks for work when it is woken, every ``poll_seconds``, and after each job, until it is drained.

    ``wake`` and ``drain`` may be called from a signal handler: they only put into a queue that is safe there.
    """

    def __init__(
        self,
        database: Database,
        storage: Storage,
        settings: Settings,
        command: Command = child_command,
        host: Host | None = None,
    ) -> None:
        #: Random for each process: a worker that starts again is another owner.
        self.owner = str(uuid.uuid4())
        self._database = database
        self._storage = storage
        self._settings = settings
        self._command = command
        gpus = look(os.environ).gpus
        #: A processor counts as one.
        self._gpus = max(1, gpus)
        #: A machine with a GPU has memory to spare for a process that waits.
        self._prepares = gpus > 0
        self._host = host
        if host is None and command is child_command and settings.warm_seconds:
            self._host = Host(warm_command(), settings.warm_seconds)
        self._attempt: Attempt | None = None
        self._draining = False
        self._calls: SimpleQueue[None] = SimpleQueue()
        # A daemon, so that a drain that hangs can't keep the process; the child dies with the thread.
        self._thread = threading.Thread(target=self._run, name="slot", daemon=True)

    def start(self) -> None:
        """Begin to look for work."""
        self._thread.start()

    def wake(self) -> None:
        """Look for work now."""
        self._calls.put(None)

    def drain(self) -> None:
        """Hand back the job at hand, after its child has saved, and take no other."""
        self._draining = True
        self._calls.put(None)
        if (attempt := self._attempt) is not None:
            attempt.drain()

    def join(self, seconds: float) -> bool:
        """Wait for the end; False when it did not come in time."""
        if self._thread.ident is None:  # never started
            return True
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        log.info("slot opened", owner=self.owner)
        workspace.sweep(self._settings)
        pause = 0.5
        while not self._draining:
            try:
                worked = self._work_once()
            except SQLAlchemyError as error:
                pause = min(2 * pause, _LONGEST_PAUSE)
                log.warning("no answer from the database", error=str(error), seconds=pause)
                self._wait(pause)
            except Exception:
                # An attempt that could not even be ended: its lease runs out and it is taken up again elsewhere.
                log.exception("attempt lost")
                self._wait(self._settings.poll_seconds)
            else:
                pause = 0.5
                if not worked:
                    self._prepare()
                    self._wait(self._settings.poll_seconds)
            if self._host is not None:
                self._host.settle()
        if self._host is not None:
            self._host.close()
        log.info("slot closed", owner=self.owner)

    def _prepare(self) -> None:
        if self._host is not None and self._prepares and not self._draining:
            self._host.prepare(environment(self._settings, JobKind.FINE_TUNE))

    def _work_once(self) -> bool:
        with self._database.write() as session:
            claim = lifecycle.claim(session, self.owner, self._settings.lease_seconds, self._gpus)
        if claim is None:
            return False
        self._carry_out(claim)
        return True

    def _carry_out(self, claim: Claim) -> None:
        self._attempt = Attempt(claim, self._database, self._storage, self._settings, self._command, self._host)
        if self._draining:  # said between the loop's look and the line above
            self._attempt.drain()
        try:
            self._attempt.run()
        finally:
            self._attempt = None

    def _wait(self, seconds: float) -> None:
        """Until the next call or the time is up; calls that came together count as one."""
        try:
            self._calls.get(timeout=seconds)
            while True:
                self._calls.get_nowait()
        except Empty:
            return
