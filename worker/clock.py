"""Where a run's seconds go: what came before the work itself is told apart, for the next job may not need it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import psutil

Part = Literal["fetch", "load"]

_started = False


class Clock:
    """Runs from the process's start, or from the order where the process has carried out another one before."""

    def __init__(self) -> None:
        start = _seconds_to_start()
        self._began = time.monotonic() - start
        self._spent: dict[Part, float] = {"fetch": 0.0, "load": start}

    @contextmanager
    def spending(self, part: Part) -> Iterator[None]:
        """Count what is done within as "fetch", which a machine does once for a model, or "load", a process once."""
        began = time.monotonic()
        yield
        self._spent[part] += time.monotonic() - began

    def report(self, *, warm: bool) -> dict[str, Any]:
        """Seconds of the run and of its parts; ``warm`` is whether the base was in memory already."""
        return {
            "seconds": round(time.monotonic() - self._began, 1),
            "warm": warm,
            "fetch_seconds": round(self._spent["fetch"], 1),
            "load_seconds": round(self._spent["load"], 1),
        }


def _seconds_to_start() -> float:
    """What Python took to import torch and the rest; 0 once that was told."""
    global _started  # noqa: PLW0603 - a process starts once
    if _started:
        return 0.0
    _started = True
    began: float = psutil.Process().create_time()
    return max(0.0, time.time() - began)
