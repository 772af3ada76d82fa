"""A step's figures, fetched from the GPU a step late: to wait for them would leave the GPU without work."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class Mark:
    """A moment in the device's work: on a GPU when it gets there, else now."""

    def __init__(self, device: torch.device) -> None:
        self._event: Any = None
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            self._event.record()
        self._time = time.perf_counter()

    def wait(self) -> None:
        """Until the device has got there."""
        if self._event is not None:
            self._event.synchronize()

    def seconds_until(self, later: "Mark") -> float:
        """From this mark to a later one; both must be past."""
        if self._event is None:
            return later._time - self._time
        return float(self._event.elapsed_time(later._event)) / 1e3


@dataclass(frozen=True)
class Figures:
    """What a step is logged with. ``values`` are on their way to the host; after ``done`` they are there."""

    step: int
    epoch: float
    tokens: int
    learning_rate: float
    names: list[str]
    values: Tensor
    began: Mark
    done: Mark

    def fetch(self) -> dict[str, float]:
        """By name, with the ``seconds`` that the step took; waits until the device has computed them."""
        self.done.wait()
        found = dict(zip(self.names, self.values.tolist(), strict=True))
        return found | {"learning_rate": self.learning_rate, "seconds": self.began.seconds_until(self.done)}


def to_host(values: dict[str, Tensor | float], device: torch.device) -> Tensor:
    """The values as one float32 tensor on the host, copied without waiting."""
    parts = [torch.as_tensor(value, dtype=torch.float32, device=device) for value in values.values()]
    return torch.stack([part.detach().reshape(()) for part in parts]).to("cpu", non_blocking=True)
