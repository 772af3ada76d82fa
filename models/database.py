"""Engine and sessions. One unit of work is one session and one commit, made here and nowhere else."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.orm import Session

#: ``session.info`` key: this unit of work wrote to the outbox.
OUTBOX_WRITTEN = "outbox_written"


class Database:
    """A database by URL.

    ``read()`` and ``write()`` differ on SQLite alone: a write takes the lock at its start (BEGIN IMMEDIATE), because a
    read that turns into a write fails at once, whatever the busy timeout.
    """

    def __init__(self, url: str) -> None:
        self.engine = _sqlite(url) if url.startswith("sqlite") else create_engine(url, pool_pre_ping=True)
        self._writer = self.engine.execution_options(hone_write=True)
        self.is_sqlite = self.engine.dialect.name == "sqlite"
        self.on_outbox: Callable[[], None] = lambda: None

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that only reads; nothing is committed."""
        with Session(self.engine, expire_on_commit=False) as session:
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
