"""A child process: its lines, its end, and how it is told to stop."""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue

from worker.parent import with_parent

#: Lines that go into one transaction at most; some 256 x 5 statements keep SQLite's lock for about 0.1 s.
BATCH = 256
#: Seconds that standard output may stay open after the child is gone: a process that left its group still holds it.
_LINGER = 5


class Child:
    """A process in a group of its own that dies with this one.

    Make it in a thread that lives until it has ended: the kernel takes that thread for the parent.
    """

    def __init__(
        self, argv: Sequence[str], *, stderr: Path, env: Mapping[str, str] | None = None, listens: bool = False
    ) -> None:
        with stderr.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - the command is Hone's own
                with_parent(argv),
                stdin=subprocess.PIPE if listens else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                env=env,
            )
        self.pid = self._process.pid
        #: Lines that have come so far, taken or not.
        self.lines_told = 0
        self._lines: SimpleQueue[bytes | None] = SimpleQueue()
        self._over = False
        self._lock = threading.Lock()
        self._reaped = False
        self._killer: threading.Timer | None = None
        self._reader = threading.Thread(target=self._read, name=f"lines-{self.pid}", daemon=True)
        self._waiter = threading.Thread(target=self._wait, name=f"end-{self.pid}", daemon=True)
        self._reader.start()
        self._waiter.start()

    def take(self) -> list[bytes] | None:
        """The lines that have come since, at least one and at most BATCH; None when the child has ended."""
        if self._over or (line := self._lines.get()) is None:
            return None
        lines = [line]
        with contextlib.suppress(Empty):
            while len(lines) < BATCH:
                if (line := self._lines.get_nowait()) is None:
                    self._over = True
                    break
                lines.append(line)
        return lines

    def send(self, line: bytes) -> None:
        """Write a line to its standard input. Raises OSError when it does not listen any more."""
        assert self._process.stdin is not None
        self._process.stdin.write(line)
        self._process.stdin.flush()

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return not self._reaped

    def spare(self) -> None:
        """Take back ``end_within``."""
        with self._lock:
            if self._killer is not None:
                self._killer.cancel()
                self._killer = None

    def stop(self, grace_seconds: float) -> None:
        """Ask the group to stop, and kill it if it is still there after ``grace_seconds``."""
        self._signal(signal.SIGTERM)
        self.end_within(grace_seconds)

    def end_within(self, seconds: float) -> None:
        """Kill the group if it is still there after ``seconds``; the first call counts."""
        with self._lock:
            if self._killer is not None or self._reaped:
                return
            self._killer = threading.Timer(seconds, self.kill)
            self._killer.daemon = True
            self._killer.start()

    def kill(self) -> None:
        """Kill the group at once."""
        self._signal(signal.SIGKILL)

    def wait(self) -> int:
        """Wait for the end; the exit code, or minus the signal that killed it."""
        self._waiter.join()
        return self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with self._lock:
            if not self._reaped:
                self._signal_group(number)

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS refuses a group of zombies
            os.killpg(self.pid, number)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines_told += 1
            self._lines.put(line)

    def _wait(self) -> None:
        # Looked at, not yet reaped: as long as the leader is a zombie no other process can get the group's number.
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with self._lock:
            self._signal_group(signal.SIGKILL)
            self._process.wait()
            self._reaped = True
            if self._killer is not None:
                self._killer.cancel()
        self._reader.join(_LINGER)
        self._lines.put(None)
