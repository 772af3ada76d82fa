"""The pulse: how a child tells that it gets on while there is nothing else to tell.

Loops that may run for minutes between two lines call ``beat``: each pass of training and validation, step of a
decoder, scored answer, encoded sample, piece of a download. The work itself beats, never a thread beside it: a child
that hangs has no pulse. Outside a child, nothing is told.
"""

import time
from collections.abc import Callable

#: Seconds between two beats: far less than the shortest sensible `HONE_STALL_SECONDS`, far more than a line costs.
EVERY = 10.0

_tell: Callable[[], None] | None = None
_told_at = float("-inf")


def listen(tell: Callable[[], None]) -> None:
    """Have ``tell`` called for beats from now on, at most once in ``EVERY`` seconds."""
    global _tell, _told_at
    _tell, _told_at = tell, time.monotonic()


def beat() -> None:
    """Tell of progress, unless that was done a moment ago. May be called from any thread."""
    global _told_at  # noqa: PLW0603 - as above
    now = time.monotonic()
    if _tell is not None and now - _told_at >= EVERY:
        _told_at = now
        _tell()
