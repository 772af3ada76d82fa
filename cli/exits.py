"""Exit codes, for scripts. Typer's own 2 is wrong usage; 130 is Ctrl-C."""

from enum import IntEnum


class Exit(IntEnum):
    """How a command ended."""

    #: Done.
    GOOD = 0
    #: Refused, or went wrong; the reason was told.
    REFUSED = 1
    #: Wrong usage: an option or argument that does not exist or does not fit.
    USAGE = 2
    #: No Hone answers at HONE_BASE_URL.
    UNREACHABLE = 3
    #: The job or the run ended as failed.
    FAILED = 4
    #: The job or the run was cancelled.
    CANCELLED = 5
    #: The dataset has lines that can't be used.
    BAD_DATASET = 6
    #: The job is paused.
    PAUSED = 7
