"""Where a run's seconds go: what came before the work itself is told apart, for the next job may not need it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import psutil

Part = Literal["fetch", "load"]

#: When the job at hand was ordered, on the machine's monotonic clock; None in a process that has one job only.
_ordered: float | None = None


def order_came(at: float) -> None:
    """The next clock runs from the moment ``at`` of ``time.monotonic()``, which all processes of a machine share."""
    global _ordered  # noqa: PLW0603 - a process has one order at a time
    _ordered = at


class Clock:
    """Runs from the order, or from the process's start where that came with its only job.

    What has passed until now went into loading: an order waits for a process that still imports torch and the rest.
    """

    def __init__(self) -> None:
        waited = time.monotonic() - _ordered if _ordered is not None else _seconds_since_start()
        self._began = time.monotonic() - waited
        self._spent: dict[Part, float] = {"fetch": 0.0, "load": waited}

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


def _seconds_since_start() -> float:
    began: float = psutil.Process().create_time()
    return max(0.0, time.time() - began)
