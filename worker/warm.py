"""The process that trains job after job on one base model, which it loads once (decision 0026).

    python -m worker.warm

Each line of standard input is an ``Order``; a job's lines go to standard output as `worker.train` writes them,
then ``IDLE`` when it went well. Any other end of a job is the end of this process, with that job's exit code, so that
nothing of it can reach the next.
"""

import copy
import gc
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState
from torch import nn
from transformers import PreTrainedModel

from worker import train
from worker.base_models import FRESH, Wanted
from worker.clock import order_came
from worker.environment import return_free_memory
from worker.host import IDLE, Order
from worker.progress import StopRequest
from worker.protocol import ExitCode, take_stdout


class Kept:
    """One base model in memory, lent to a job at a time as a model of its own around the same weights."""

    def __init__(self) -> None:
        self._wanted: Wanted | None = None
        self._model: PreTrainedModel | None = None
        self._seal: list[tuple[Any, ...]] = []

    def has(self, wanted: Wanted) -> bool:
        """Whether it is the one in memory."""
        return wanted == self._wanted

    def lend(self, wanted: Wanted) -> PreTrainedModel:
        """The base as ``load_base`` gives it; loaded when another one was here."""
        if not self.has(wanted):
            self._wanted, self._model = None, None
            free_memory()
            self._model = FRESH.lend(wanted)
            self._wanted, self._seal = wanted, seal(self._model)
        assert self._model is not None
        return share(self._model)

    @property
    def untouched(self) -> bool:
        """Whether no job has written to the weights."""
        return self._model is None or seal(self._model) == self._seal


def share(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the model's modules around the very same weights: what a job does to its modules stays its own."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        state = getattr(module, "quant_state", None)
        if state is not None:
            memo[id(state)] = state
    for tensor in [*model.parameters(), *model.buffers()]:
        # Another object with the same bytes: a job that gives its parameter another type leaves ours as it was.
        memo[id(tensor)] = copy.copy(tensor) if hasattr(tensor, "quant_state") else _alias(tensor)
    return copy.deepcopy(model, memo)


def _alias(tensor: torch.Tensor) -> torch.Tensor:
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(tensor.data, requires_grad=tensor.requires_grad)
    return tensor.clone()  # buffers are small: frequencies of the positions


def seal(model: PreTrainedModel) -> list[tuple[Any, ...]]:
    """What changes when a weight is written to or replaced: its place in memory, its type, its count of writes."""
    return [(p.data_ptr(), p.dtype, p.requires_grad, p._version) for p in model.parameters()]


def free_memory() -> None:
    """Return what no object holds any more.

    What is left then, some 600,000 objects of libraries, is not looked at again by collections within the next job.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    return_free_memory()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main() -> int:
    """Take orders until standard input ends or a job does not end well."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    lines, kept = take_stdout(), Kept()
    environment = dict(os.environ)
    for text in sys.stdin.buffer:
        order = Order.model_validate_json(text)
        order_came(order.at)
        stop = StopRequest()
        stop.listen()
        _write_errors_to(order.stderr)
        code = train.run(order.input, order.out, lines, stop, kept)
        if code != ExitCode.DONE:
            return code
        _forget_the_job(environment)
        if stop.asked or not kept.untouched:
            return ExitCode.DONE
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        lines.write(IDLE)
    return ExitCode.DONE


def _write_errors_to(path: Path) -> None:
    """Standard error belongs to the job at hand."""
    with path.open("ab") as file:
        os.dup2(file.fileno(), 2)


def _forget_the_job(environment: dict[str, str]) -> None:
    """Put back what libraries keep for a whole process: accelerate its precision, Trainer some variables."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    os.environ.clear()
    os.environ.update(environment)
    free_memory()


if __name__ == "__main__":
    sys.exit(main())
