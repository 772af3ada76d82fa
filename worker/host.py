"""The worker's side of the warm process: one that has trained well is kept for the next job on the same base.

Everything else is as with a process for each job: it dies with the worker, it is killed with its whole group, and a job
that was stopped or broke off takes it along (decision 0026).
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field

from core.logging import get_logger
from worker.child import Child
from worker.protocol import TrainingInput
from worker.workspace import Workspace

log = get_logger(__name__)

#: What the warm process says when a job went well and it waits for another.
IDLE = b'{"type": "idle"}\n'


def warm_command() -> list[str]:
    """The command of the warm process."""
    return [sys.executable, "-m", "worker.warm"]


class Order(BaseModel):
    """A job for the warm process: the arguments of `python -m worker.train`, and where standard error goes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: Path
    out: Path
    stderr: Path
    #: When it was given, on the machine's monotonic clock.
    at: float = Field(default_factory=time.monotonic)

    @classmethod
    def of(cls, space: Workspace) -> "Order":
        """The order for the job of a workspace."""
        return cls(input=space.input, out=space.out, stderr=space.stderr)


def base_of(source: Path) -> str:
    """What a training job's loaded base depends on, from its input file: jobs with the same text can share one."""
    job = TrainingInput.model_validate_json(source.read_bytes())
    hone = job.spec.hone
    return json.dumps(
        [
            job.base_model.model_dump(mode="json"),
            hone.quantization.model_dump(mode="json"),
            hone.training.precision,
        ]
    )


def gpus_of(source: Path) -> int:
    """GPUs that a training job asks for."""
    return TrainingInput.model_validate_json(source.read_bytes()).spec.hone.training.gpus


class Running(Protocol):
    """A job in a process: a ``Child`` of its own, or its turn in the warm one."""

    pid: int

    @property
    def lines_told(self) -> int:
        """See ``Child.lines_told``."""

    def take(self) -> list[bytes] | None:
        """See ``Child.take``."""

    def stop(self, grace_seconds: float) -> None:
        """See ``Child.stop``."""

    def end_within(self, seconds: float) -> None:
        """See ``Child.end_within``."""

    def kill(self) -> None:
        """See ``Child.kill``."""

    def wait(self) -> int:
        """See ``Child.wait``."""


class Turn:
    """One job in the warm process. Once it has ended well, what is asked of it does not reach the process any more."""

    def __init__(self, child: Child) -> None:
        self.pid = child.pid
        self._child = child
        self._over = False
        #: Whether someone asked for its end: then the process must not be used again.
        self.disturbed = False

    def take(self) -> list[bytes] | None:
        """As ``Child.take``; the line that ends the job is not handed on."""
        if self._over or (lines := self._child.take()) is None:
            return None
        if lines[-1] == IDLE:
            self._over = True
            self._child.spare()
            lines.pop()
        return lines or None

    @property
    def lines_told(self) -> int:
        """As ``Child.lines_told``: whoever looks compares with an earlier look."""
        return self._child.lines_told

    @property
    def ended_well(self) -> bool:
        """Whether the job is done and the process waits."""
        return self._over

    def stop(self, grace_seconds: float) -> None:
        """As ``Child.stop``."""
        self.disturbed = True
        if not self._over:
            self._child.stop(grace_seconds)

    def end_within(self, seconds: float) -> None:
        """As ``Child.end_within``."""
        if not self._over:
            self._child.end_within(seconds)

    def kill(self) -> None:
        """As ``Child.kill``."""
        if not self._over:
            self.disturbed = True
            self._child.kill()

    def wait(self) -> int:
        """As ``Child.wait``; 0 when the job ended well."""
        return 0 if self._over else self._child.wait()


class Host:
    """Keeps at most one warm process, for at most ``idle_seconds`` without a job. For one thread, that of the slot."""

    def __init__(self, argv: Sequence[str], idle_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._argv = argv
        self._idle_seconds = idle_seconds
        self._clock = clock
        self._child: Child | None = None
        #: What the child has loaded; None before its first job.
        self._base: str | None = None
        self._died_early = False
        self._turn: Turn | None = None
        self._idle_since = 0.0

    @property
    def pid(self) -> int | None:
        """Of the process that is kept, if one is."""
        return self._child.pid if self._child is not None else None

    def prepare(self, env: Mapping[str, str]) -> None:
        """Begin a process that has no job yet, where none is kept: torch and its company take it up to 20 s to import.

        It touches no GPU. One that died before it had a job is not begun again: the next job will tell why.
        """
        if self._child is None and not self._died_early:
            self._child = Child(self._argv, stderr=Path(os.devnull), env=env, listens=True)

    def start(self, order: Order, base: str, env: Mapping[str, str]) -> Turn:
        """Begin a job. ``base`` stands for all that the loaded base depends on; ``env`` is each job's."""
        if self._base not in {None, base}:
            self.close()
        line = order.model_dump_json().encode() + b"\n"
        child, warm = self._take_kept(line), True
        if child is None:
            child, warm = Child(self._argv, stderr=order.stderr, env=env, listens=True), False
            child.send(line)
        log.info("training process", pid=child.pid, warm=warm)
        self._child, self._base, self._turn = child, base, Turn(child)
        return self._turn

    def _take_kept(self, line: bytes) -> Child | None:
        """The kept process, with the line sent to it; None when there is none or it is dead."""
        self.settle()
        child = self._child
        if child is not None and child.alive:
            try:
                child.send(line)
            except OSError:
                log.warning("the warm process was gone")
            else:
                return child
        self.close()
        return None

    def settle(self) -> None:
        """Look after the process between jobs: one whose job did not end well, or that was idle too long, goes."""
        turn, self._turn = self._turn, None
        if turn is not None:
            self._idle_since = self._clock()
            if not turn.ended_well or turn.disturbed:
                self.close()
        if self._child is not None and self._base is None:
            self._died_early = not self._child.alive
            if self._died_early:
                log.warning("the process that was to wait for a job has ended")
                self.close()
        elif self._child is not None and self._clock() - self._idle_since >= self._idle_seconds:
            self.close()

    def close(self) -> None:
        """Kill the process and wait until it is gone and its memory free."""
        child, self._child, self._base, self._turn = self._child, None, None, None
        if child is not None:
            child.kill()
            child.wait()
