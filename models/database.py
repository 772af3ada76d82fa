"""Engine and sessions. One unit of work is one session and one commit, made here and nowhere else."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry

#: ``session.info`` key: this unit of work wrote to the outbox.
OUTBOX_WRITTEN = "outbox_written"


class Database:
    """A database by URL.

    ``read()`` and ``write()`` differ on SQLite alone: a write takes the lock at its start (BEGIN IMMEDIATE), because a
    read that turns into a write fails at once, whatever the busy timeout.
    """

    def __init__(self, url: str) -> None:
        self.engine = _sqlite(url) if url.startswith("sqlite") else _postgresql(url)
        self._writer = self.engine.execution_options(hone_write=True)
        self.is_sqlite = self.engine.dialect.name == "sqlite"
        # On PostgreSQL each statement sees what is committed, in a transaction or not: BEGIN and ROLLBACK would only be
        # two more round trips. On SQLite a transaction is what makes several reads agree.
        self._reader = self.engine if self.is_sqlite else self.engine.execution_options(isolation_level="AUTOCOMMIT")
        self.on_outbox: Callable[[], None] = lambda: None

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that only reads; nothing is committed."""
        with Session(self._reader, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session that is committed when the block ends and rolled back when it raises."""
        with Session(self._writer, expire_on_commit=False) as session:
            with session.begin():
                yield session
            if session.info.pop(OUTBOX_WRITTEN, False):
                self.on_outbox()

    def ping(self) -> None:
        """Raise SQLAlchemyError unless the database answers."""
        with self.engine.connect() as connection:
            connection.execute(text("SELECT 1"))

    def dispose(self) -> None:
        """Close every connection."""
        self.engine.dispose()


#: A connection that was in use within so many seconds is taken to be alive.
_TRUSTED_SECONDS = 1.0

#: When a server that is gone is noticed: after 5 s while connecting, 30 s after sending what it never confirms, and
#: 30 + 3 x 10 s into waiting for an answer. The kernel's own limits are 2 minutes, 15 minutes and 2 hours.
_LIVENESS = {
    "connect_timeout": 5,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}


def _postgresql(url: str) -> Engine:
    asked = make_url(url).query
    engine = create_engine(
        url,
        # The API works in 40 threads (anyio's limit), each with one session at most, and has three more of its own: so
        # no request ever waits for a connection. Ten are kept; the others are closed when the burst is over. Two API
        # processes and their workers stay below the 100 connections that PostgreSQL allows by default.
        pool_size=10,
        max_overflow=35,
        connect_args={name: value for name, value in _LIVENESS.items() if name not in asked},
    )
    _ping_after_idling(engine)
    return engine


def _ping_after_idling(engine: Engine) -> None:
    """Ask a connection whether it is alive before it is used again, unless it was in use within the last second.

    SQLAlchemy's own ``pool_pre_ping`` asks each time, a fifth of what a short request costs. A server that dies within
    that second shows as a failed statement, which every caller has to expect anyway.
    """

    @event.listens_for(engine, "checkin")
    def _returned(_: Any, record: ConnectionPoolEntry) -> None:
        record.info["returned_at"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def _taken(connection: Any, record: ConnectionPoolEntry, _: Any) -> None:
        if time.monotonic() - record.info.get("returned_at", time.monotonic()) < _TRUSTED_SECONDS:
            return
        try:
            engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as error:
            raise InvalidatePoolError from error  # the pool forgets its connections and makes new ones


def _sqlite(url: str) -> Engine:
    if database := make_url(url).database:
        Path(database).parent.mkdir(parents=True, exist_ok=True)
    # Seconds that a writer waits for another: far above the longest transaction (some 50 ms), below any client's
    # patience.
    engine = create_engine(url, connect_args={"timeout": 30})

    @event.listens_for(engine, "connect")
    def _configure(connection: sqlite3.Connection, _: Any) -> None:
        connection.isolation_level = None  # SQLAlchemy's begin, below, not sqlite3's guess
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")  # an acknowledged job survives a power cut
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        immediate = connection.get_execution_options().get("hone_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine
