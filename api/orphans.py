"""The sweep of storage: deletes what lost attempts of jobs, and uploads that broke off, left there."""

import time
from collections.abc import Iterable, Sequence
from itertools import islice

from sqlalchemy import or_, select, tuple_

from api.background import Repeating
from core.ids import made_at
from core.logging import get_logger
from core.storage import Storage
from models.base import db_now
from models.database import Database
from models.status import ENDED, JobStatus
from models.tables import Checkpoint, File, Job, UploadPart

log = get_logger(__name__)

#: A worker that lost its job may still be storing a large object, which nothing will name. An hour outlasts that.
_GRACE_SECONDS = 3_600
_SWEEP_SECONDS = 3_600
_AFTER_ERROR_SECONDS = 600
#: Jobs in one round; each takes one listing, some 50 ms of a remote store.
_BATCH = 20
#: Age of an uploaded object that should have its row by now; far above any upload, and any difference between clocks.
_UPLOAD_GRACE_SECONDS = 86_400
#: Keys in one question to the database.
_KEYS = 500


class OrphanSweep:
    """Looks once an hour at the jobs that have ended since. It runs in every API process; deleting twice is no error.

    It has a thread of its own, so that a storage that hangs does not keep the reaper from its leases.
    """

    def __init__(self, database: Database, storage: Storage) -> None:
        self._database = database
        self._storage = storage
        #: ``finished_at`` and id of the last job that was looked at; a process that starts looks at all of them.
        self._after = (0.0, "")
        self._thread = Repeating("hone-orphans", self.sweep, after_error=_AFTER_ERROR_SECONDS)
        self.start, self.stop = self._thread.start, self._thread.stop

    def sweep(self) -> float:
        """Look at a batch of jobs; the seconds to wait until the next one."""
        jobs = self._ended_jobs()
        for finished_at, job_id in jobs:
            self._sweep_job(job_id)
            self._after = (finished_at, job_id)
        if len(jobs) == _BATCH:
            return 0
        self._sweep_uploads(self._storage.list("files"), File)
        self._sweep_uploads(self._storage.list("uploads"), UploadPart)
        return _SWEEP_SECONDS

    def _ended_jobs(self) -> Sequence[tuple[float, str]]:
        """The next jobs that may have left something: one that went well at its first claim has not."""
        place = tuple_(Job.finished_at, Job.id)
        query = (
            select(Job.finished_at, Job.id)
            .where(
                Job.status.in_(ENDED),
                Job.finished_at < db_now() - _GRACE_SECONDS,
                Job.lease_epoch > 0,
                or_(Job.lease_epoch > 1, Job.status != JobStatus.SUCCEEDED),
                place > self._after,
            )
            .order_by(Job.finished_at, Job.id)
            .limit(_BATCH)
        )
        with self._database.read() as session:
            return [(float(finished_at or 0), job_id) for finished_at, job_id in session.execute(query)]

    def _sweep_job(self, job_id: str) -> None:
        """Delete a job's objects that no row names. No worker can write such a row any more: the job has ended."""
        folder = f"jobs/{job_id}"
        found = set(self._storage.list(folder))
        orphans = found - self._named(folder) if found else found
        for key in orphans:
            self._storage.delete(key)
        if orphans:
            log.info("orphans_deleted", job_id=job_id, objects=len(orphans))

    def _sweep_uploads(self, keys: Iterable[str], row: type[File | UploadPart]) -> None:
        """Delete old objects without a row: a process died between the two, or a deletion did not get through."""
        old = filter(_is_old, keys)
        while batch := list(islice(old, _KEYS)):
            with self._database.read() as session:
                orphans = set(batch) - set(session.scalars(select(row.storage_key).where(row.storage_key.in_(batch))))
            for key in orphans:
                self._storage.delete(key)
            if orphans:
                log.info("orphans_deleted", table=row.__tablename__, objects=len(orphans))

    def _named(self, folder: str) -> set[str]:
        """By key and not by job: a file's ``job_id`` is emptied when its job is deleted, and the file stays."""
        keys = (
            select(row.storage_key).where(row.storage_key.startswith(f"{folder}/", autoescape=True))
            for row in (File, Checkpoint)
        )
        with self._database.read() as session:
            return {key for query in keys for key in session.scalars(query)}


def _is_old(key: str) -> bool:
    """Whether a key that ends with an id was made long enough ago; what is not Hone's is left alone."""
    try:
        return made_at(key) < time.time() - _UPLOAD_GRACE_SECONDS
    except ValueError:
        return False
