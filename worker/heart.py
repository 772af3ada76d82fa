"""A claim's heartbeat: a thread that renews the lease and carries out the orders that come back."""

import threading
from enum import Enum, auto
from queue import Empty, SimpleQueue
from types import TracebackType

from sqlalchemy.exc import SQLAlchemyError

from core.logging import get_logger
from core.settings import Settings
from models import lifecycle
from models.database import Database
from models.lifecycle import Claim, LeaseLostError
from worker.host import Running

log = get_logger(__name__)


#: A child that is to save gets this many times the grace of a cancelled one: its step and its checkpoint are worth
#: waiting for.
_SAVE_GRACES = 3


class Stop(Enum):
    """Why a child was stopped; an earlier one gives way to a later one."""

    #: The worker was told to stop.
    DRAINED = auto()
    #: A user wants the job put aside.
    PAUSED = auto()
    #: It made no progress for too long.
    STALLED = auto()
    #: A user wants it ended.
    CANCELLED = auto()
    #: The job is another worker's by now.
    LOST = auto()


class _Message(Enum):
    DRAIN = auto()
    CLOSE = auto()


class Heart:
    """Beats every ``heartbeat_seconds`` from `with` to its end, and sees whether the child gets on.

    It has a thread of its own because preparing a job and storing a checkpoint may take longer than a lease lasts.
    While the database is away it keeps trying and the child keeps training; the first beat that gets through tells
    whether the job is still this worker's.
    """

    def __init__(self, database: Database, claim: Claim, settings: Settings) -> None:
        self.stop: Stop | None = None
        self._database = database
        self._claim = claim
        self._settings = settings
        self._child: Running | None = None
        #: Lines of the child at the last beat, and for how many seconds there have been no others: counted by beats,
        #: so that a worker that was stopped itself does not take its own absence for the child's.
        self._lines_told = 0
        self._quiet = 0.0
        self._lock = threading.Lock()
        self._messages: SimpleQueue[_Message] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"heart-{claim.job_id}", daemon=True)

    def __enter__(self) -> "Heart":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._messages.put(_Message.CLOSE)
        # A beat that hangs on the network must not keep the slot; what it writes later is refused by its epoch.
        self._thread.join(5)

    def attach(self, child: Running) -> None:
        """Stop this child from now on, or at once when that was asked for before it was there."""
        with self._lock:
            self._child = child
            self._act()

    def drain(self) -> None:
        """Have the child stopped because the worker ends. May be called from a signal handler."""
        self._messages.put(_Message.DRAIN)

    def _run(self) -> None:
        message: _Message | None = None
        while message is not _Message.CLOSE and self.stop is not Stop.LOST:
            if message is _Message.DRAIN:
                self._order(Stop.DRAINED)
            else:
                self._beat()
            try:
                message = self._messages.get(timeout=self._settings.heartbeat_seconds)
            except Empty:
                message = None

    def _beat(self) -> None:
        progressed = self._look_at_child()
        try:
            with self._database.write() as session:
                orders = lifecycle.heartbeat(session, self._claim, self._settings.lease_seconds, progressed=progressed)
        except LeaseLostError:
            self._order(Stop.LOST)
        except SQLAlchemyError as error:
            log.warning("heartbeat failed", job=self._claim.job_id, error=str(error))
        else:
            if orders.cancel:
                self._order(Stop.CANCELLED)
            elif orders.pause:
                self._order(Stop.PAUSED)

    def _look_at_child(self) -> bool:
        """Whether the child has told anything since the last beat; one that has not for too long is stopped."""
        if self._child is None:
            return False
        told, self._lines_told = self._lines_told, self._child.lines_told
        if told != self._lines_told:
            self._quiet = 0.0
            return True
        self._quiet += self._settings.heartbeat_seconds
        if self._quiet >= self._settings.stall_seconds:
            self._order(Stop.STALLED)
        return False

    def _order(self, stop: Stop) -> None:
        with self._lock:
            if self.stop is None or self.stop.value < stop.value:
                self.stop = stop
                self._act()

    def _act(self) -> None:
        if self._child is None or self.stop is None:
            return
        grace = self._settings.cancel_grace_seconds
        if self.stop in (Stop.LOST, Stop.STALLED):
            self._child.kill()
        else:
            self._child.stop(grace if self.stop is Stop.CANCELLED else _SAVE_GRACES * grace)
