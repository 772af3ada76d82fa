"""A part of an embedded Hone: a process that is started again when it dies."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue

from core.logging import get_logger
from worker.parent import with_parent

log = get_logger(__name__)

#: Seconds after which a process that dies is thought to have been well, so that it is started again at once.
_WELL_AFTER = 60
_LONGEST_PAUSE = 30


class Part:
    """A process in a group of its own, kept alive by a thread of its own.

    The thread starts the process and outlives it, as PR_SET_PDEATHSIG asks for. ``ended`` gets the part's name when the
    thread is through, which happens only after ``stop`` or ``kill``.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        log: Path,
        grace_seconds: float,
        ended: SimpleQueue[str],
    ) -> None:
        self.name = name
        self.log = log
        self.grace_seconds = grace_seconds
        #: How often it has died by itself.
        self.deaths = 0
        #: The process has ended for good.
        self.is_over = False
        self._argv = argv
        self._env = env
        self._ended = ended
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = False
        self._lock = threading.Lock()
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"part-{name}", daemon=True)

    def start(self) -> None:
        """Start the process, and keep it alive from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the process to end."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the process's whole group at once."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        with self._lock:
            self._stopping = True
            self._signal(number)
        self._wake.put(None)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS refuses a group of zombies
                os.killpg(self._process.pid, number)

    def _run(self) -> None:
        pause = 0.0
        while (process := self._spawn()) is not None:
            began = time.monotonic()
            # Not reaped yet, so that nobody else can get the group's number before what is left of it is killed.
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            with self._lock:
                self._signal(signal.SIGKILL)
                code = process.wait()
                self._process = None
                if self._stopping:
                    break
                self.deaths += 1
            pause = 0.0 if time.monotonic() - began > _WELL_AFTER else pause
            log.warning("part died", part=self.name, exit_code=code, again_in=pause, log=str(self.log))
            with contextlib.suppress(Empty):
                self._wake.get(timeout=pause)
            pause = min(max(1.0, 2 * pause), _LONGEST_PAUSE)
        self.is_over = True
        self._ended.put(self.name)

    def _spawn(self) -> subprocess.Popen[bytes] | None:
        with self._lock:
            if self._stopping:
                return None
            with self.log.open("ab") as output:
                self._process = subprocess.Popen(  # noqa: S603 - our own command
                    with_parent(self._argv),
                    env=self._env,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            return self._process
