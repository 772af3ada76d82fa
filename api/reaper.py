"""The reaper: takes jobs from workers that stopped answering, and deletes files and parts whose time is up."""

import time

from sqlalchemy.exc import SQLAlchemyError

from api.background import Repeating
from api.file_access import delete_expired
from api.upload_parts import expire_uploads
from core.logging import get_logger
from core.settings import Settings
from core.storage import Storage
from models import lifecycle
from models.database import Database

log = get_logger(__name__)


class Reaper:
    """Looks every ``reap_seconds``. It runs in every API process; rows are locked, so they do not meet.

    While the database is away no worker can renew its lease, and all of them train on. So when it is back, leases that
    ran out meanwhile are left alone for two heartbeats: whoever still lives renews by then.
    """

    def __init__(self, database: Database, storage: Storage, settings: Settings) -> None:
        self._database = database
        self._storage = storage
        self._settings = settings
        #: Since when (monotonic) the database has answered again, after it had not.
        self._back_since = float("-inf")
        self._thread = Repeating("hone-reaper", self.reap, after_error=settings.reap_seconds)
        self.start, self.stop = self._thread.start, self._thread.stop

    def reap(self) -> float:
        """Look once; the seconds to wait until the next time."""
        try:
            self._take_expired()
        except SQLAlchemyError:
            self._back_since = float("inf")
            raise
        with self._database.write() as session:
            keys = [*delete_expired(session), *expire_uploads(session)]
        for key in keys:
            self._storage.delete(key)
        return self._settings.reap_seconds

    def _take_expired(self) -> None:
        if self._back_since == float("inf"):
            self._database.ping()
            self._back_since = time.monotonic()
        if time.monotonic() - self._back_since < 2 * self._settings.heartbeat_seconds:
            return
        with self._database.write() as session:
            taken = lifecycle.reap(session, self._settings.max_attempts)
        for job_id in taken:
            log.warning("lease_expired", job_id=job_id)
