"""A job's status, and the moves that it may make."""

from enum import StrEnum


class JobStatus(StrEnum):
    """OpenAI's names, on the wire and in the database."""

    #: Written, its files not yet looked at.
    VALIDATING_FILES = "validating_files"
    #: Waits for a worker.
    QUEUED = "queued"
    #: A worker holds its lease.
    RUNNING = "running"
    #: Put aside on request; goes on from its last checkpoint.
    PAUSED = "paused"
    #: Ended with its results stored.
    SUCCEEDED = "succeeded"
    #: Ended for the reason in its error.
    FAILED = "failed"
    #: Ended on request.
    CANCELLED = "cancelled"


class JobKind(StrEnum):
    """What a job does."""

    FINE_TUNE = "fine_tune"
    EVALUATION = "evaluation"


#: Every move there is. ``running -> queued`` is a lost lease, or a worker that was told to stop.
TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.VALIDATING_FILES: frozenset({JobStatus.QUEUED, JobStatus.FAILED, JobStatus.CANCELLED}),
    JobStatus.QUEUED: frozenset({JobStatus.RUNNING, JobStatus.PAUSED, JobStatus.CANCELLED}),
    JobStatus.RUNNING: frozenset(
        {JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.PAUSED, JobStatus.QUEUED}
    ),
    JobStatus.PAUSED: frozenset({JobStatus.QUEUED, JobStatus.CANCELLED}),
    JobStatus.SUCCEEDED: frozenset(),
    JobStatus.FAILED: frozenset(),
    JobStatus.CANCELLED: frozenset(),
}

ENDED = frozenset(status for status, targets in TRANSITIONS.items() if not targets)
