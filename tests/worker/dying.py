"""Training, or an evaluation, in a forked process that dies, or is told to stop, at an instant that the test names.

The processes are forked from one that has imported torch and TRL already: a run of the tiny model then takes some 2 s.
"""

import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.protocol import EvaluationInput, Saved, Step, TrainingInput, parse_line


@dataclass(frozen=True)
class Instant:
    """A moment of a run: ``where`` it is at, the ``step`` that it belongs to, and the signal that comes then."""

    where: str
    step: int
    number: signal.Signals = signal.SIGKILL


@dataclass(frozen=True)
class Run:
    """A run that is over: its exit code (minus the signal that killed it), its lines, and its folder."""

    code: int
    lines: list[Any]
    out: Path

    @property
    def losses(self) -> dict[int, float]:
        """Each step's training loss, as often as it was told: the last one."""
        return {line.step: line.metrics["train_loss"] for line in self._steps("train_loss")}

    @property
    def valid_losses(self) -> dict[int, float]:
        return {line.step: line.metrics["valid_loss"] for line in self._steps("valid_loss")}

    @property
    def saved(self) -> list[int]:
        return [line.step for line in self.lines if isinstance(line, Saved)]

    def _steps(self, name: str) -> list[Step]:
        return [line for line in self.lines if isinstance(line, Step) and name in line.metrics]


_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["tests.worker.dying_child"])


def train(job: TrainingInput, out: Path, instant: Instant | None = None, saves_killed: int = 0) -> Run:
    """Train in a process of its own, to the end or to the instant; kill ``saves_killed`` forks of it in each save."""
    from tests.worker import dying_child

    return _run(dying_child.run, job, out, (instant, saves_killed))


def evaluate(job: EvaluationInput, out: Path, instant: Instant | None = None) -> Run:
    """Evaluate in a process of its own, to the end or to the instant."""
    from tests.worker import dying_child

    return _run(dying_child.run_evaluation, job, out, (instant,))


def _run(target: Callable[..., None], job: TrainingInput | EvaluationInput, out: Path, more: tuple[Any, ...]) -> Run:
    out.parent.mkdir(parents=True, exist_ok=True)
    source, said = out.with_suffix(".json"), out.with_suffix(".lines")
    source.write_text(job.model_dump_json())
    process = _forks.Process(target=target, args=(str(source), str(out), str(said), *more))
    process.start()
    process.join(120)
    assert process.exitcode is not None, "the run hangs"
    lines = [parse_line(line) for line in said.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return Run(process.exitcode, lines, out)


def hook(place: Any, name: str, before: Callable[..., None]) -> None:
    """Have ``before`` called with the arguments of each call of ``place.name``."""
    original = getattr(place, name)

    def called(*args: Any, **kwargs: Any) -> Any:
        before(*args, **kwargs)
        return original(*args, **kwargs)

    setattr(place, name, called)


def strike(instant: Instant) -> None:
    """Send this process the instant's signal."""
    os.kill(os.getpid(), instant.number)


def kill_forks_in_save(save: Callable[..., None], times: int) -> Callable[..., None]:
    """The save, done first by forks of this process into folders `try-N`, each killed at a random moment of it."""

    def saved(trainer: Any, *args: Any) -> None:
        mine, chance = trainer.args.output_dir, random.Random(1)
        seconds = 0.0
        for number in range(-3, times):  # the first three, unharmed, tell how long a save takes
            began = time.monotonic()
            if (pid := os.fork()) == 0:
                trainer.args.output_dir = f"{mine}/try-{number}"
                save(trainer, *args)
                os._exit(0)
            if number >= 0:
                time.sleep(chance.uniform(0, 1.1 * seconds))
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            if number < 0:
                seconds = time.monotonic() - began
        save(trainer, *args)

    return saved


def redirect(path: str) -> None:
    """Send what this process says on standard output into a file."""
    sys.stdout = Path(path).open("w", encoding="utf-8")  # noqa: SIM115 - until the process ends
