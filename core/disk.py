"""A full disk, told apart from other errors, in whose words libraries hide it."""

import errno

from core.errors import HoneError, TrainingError

#: No space left, a quota, and a limit on a file's size (RLIMIT_FSIZE).
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: What torch's and safetensors' own errors say: they have no errno.
_WORDS = ("No space left on device", "PytorchStreamWriter failed writing", "os error 28", "os error 27", "os error 122")


def disk_full(error: BaseException) -> HoneError | None:
    """The error to fail a job with when ``error`` comes of a full disk, else None."""
    cause: BaseException | None = error
    while cause is not None:
        if (isinstance(cause, OSError) and cause.errno in _FULL) or any(words in str(cause) for words in _WORDS):
            return TrainingError(
                f"The worker's disk is full: {error}. Free space under its HONE_HOME, then submit the job again.",
                code="disk_full",
            )
        cause = cause.__cause__ or cause.__context__
    return None
