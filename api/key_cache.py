"""Which project a key opens, remembered for a second: most requests come in bursts under one key."""

import time

from models import accounts
from models.database import Database

#: Seconds for which a revoked key may still be taken.
_KEEP_SECONDS = 1.0
#: Keys that are remembered at most; some 200 bytes each.
_MOST = 10_000


class KeyCache:
    """Projects by the SHA-256 of their keys. Keys that open nothing are not remembered."""

    def __init__(self) -> None:
        self._projects: dict[str, tuple[str, float]] = {}

    def find(self, key: str) -> str | None:
        """The project that the key opened within the last second; None when the database has to be asked."""
        project_id, until = self._projects.get(accounts.hash_key(key), ("", 0.0))
        return project_id if until > time.monotonic() else None

    def ask(self, database: Database, key: str) -> str:
        """The project that the key opens. Raises AuthenticationError."""
        with database.read() as session:
            project_id = accounts.authenticate(session, key)
        if len(self._projects) >= _MOST:
            self._projects.clear()
        self._projects[accounts.hash_key(key)] = (project_id, time.monotonic() + _KEEP_SECONDS)
        return project_id
