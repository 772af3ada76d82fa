"""A job's figures on their way to Weights & Biases, seen from the training process, which never waits for them.

W&B is talked to by a process of its own (worker/wandb_run.py): one that hangs costs a job ``_PATIENCE`` at its end, and
one that breaks costs it nothing. Figures that can't be handed over are lost to W&B; the job's own are in its events.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from worker.parent import with_parent
from worker.protocol import Event, LineWriter, TrainingInput

#: Seconds that W&B gets at the end for what it has not taken yet: half of the grace that a job told to stop has.
_PATIENCE = 10.0


class Watcher:
    """Is told of a run's figures. This one does nothing with them."""

    def tell(self, step: int, figures: Mapping[str, float]) -> None:
        """Take figures of a step; a step may come twice."""

    def finish(self, exit_code: int = 0) -> None:
        """The run is over, well or not. Only the first call counts."""


NOBODY = Watcher()


@contextmanager
def watching(job: TrainingInput, source: Path, out: Path, lines: LineWriter) -> Iterator[Watcher]:
    """The watcher that a job asks for, from its start to its end. ``source`` is the job's input file."""
    if job.spec.wandb is None:
        yield NOBODY
        return
    watcher, exit_code = WandbLog(source, out / "wandb", lines), 1
    try:
        yield watcher
        exit_code = 0
    finally:
        watcher.finish(exit_code)


class WandbLog(Watcher):
    """Hands figures to the process that talks to W&B, and hands on the events that come back. ``folder`` is W&B's."""

    def __init__(self, source: Path, folder: Path, lines: LineWriter) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lines = lines
        self._over = self._lost = self._warned = False
        self._process = subprocess.Popen(  # noqa: S603 - the command is Hone's own
            with_parent([sys.executable, "-m", "worker.wandb_run", str(source), str(folder)]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdin is not None
        self._input = self._process.stdin
        os.set_blocking(self._input.fileno(), False)  # a full pipe is lost figures, not a halt
        self._events = threading.Thread(target=self._hand_on, name="wandb-events", daemon=True)
        self._events.start()

    def tell(self, step: int, figures: Mapping[str, float]) -> None:
        """Hand figures over, or lose them when W&B's process takes none."""
        self._send({"step": step, "figures": dict(figures)})

    def finish(self, exit_code: int = 0) -> None:
        """Have W&B end its run; what it has not taken in ``_PATIENCE`` seconds is lost. Warns if anything was."""
        if self._over:
            return
        self._over = True
        self._send({"exit_code": exit_code})
        with suppress(OSError):
            self._input.close()
        try:
            code = self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._events.join(1)
        if (code != 0 or self._lost) and not self._warned:
            self._lines.send(
                Event(message="W&B has not taken all figures of this job; they are in its events", level="warn")
            )

    def _send(self, value: dict[str, Any]) -> None:
        line = json.dumps(value).encode() + b"\n"  # under 4,096 bytes, which a pipe takes as a whole or not at all
        try:
            os.write(self._input.fileno(), line)
        except OSError:
            self._lost = True

    def _hand_on(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with suppress(ValidationError):
                event = Event.model_validate_json(line)
                self._warned |= event.level == "warn"
                self._lines.send(event)
