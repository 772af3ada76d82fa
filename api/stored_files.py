"""A file's bytes into storage and its row into the database: neither stays without the other."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from sqlalchemy.orm import Session

from api.once import Once
from api.schemas import file_object
from core.ids import new_id
from core.storage import Storage
from models.database import Database
from models.tables import File


class Places(Protocol):
    """Where a file goes: its bytes and its row."""

    @property
    def storage(self) -> Storage:
        """Of its bytes."""

    @property
    def database(self) -> Database:
        """Of its row."""


def store_file(
    parts: Places,
    project_id: str,
    chunks: Iterable[bytes],
    *,
    filename: str,
    purpose: str,
    report: Mapping[str, Any] | None,
    source: Mapping[str, Any] | None = None,
    expires_after: int | None = None,
    once: Once | None = None,
    together: Callable[[Session, File], None] | None = None,
) -> File:
    """Put bytes into storage and their row into the database; neither stays without the other.

    ``together`` is done in the row's transaction, once the row is there.
    With ``once``, the row is the request's answer. Raises ReplayError when another request with its key was faster.
    """
    file_id = new_id("file-")
    key = f"files/{file_id}"
    try:
        stored = parts.storage.put(key, chunks)
        with parts.database.write() as session:
            if once is not None:
                once.begin(session)
            file = File(
                id=file_id,
                project_id=project_id,
                filename=filename,
                purpose=purpose,
                bytes=stored.bytes,
                sha256=stored.sha256,
                storage_key=key,
                report=dict(report) if report is not None else None,
                source=dict(source) if source is not None else None,
            )
            session.add(file)
            session.flush()
            if expires_after is not None:
                file.expires_at = file.created_at + expires_after
            if together is not None:
                together(session, file)
            if once is not None:
                once.keep(session, file_object(file))
    except BaseException:
        parts.storage.delete(key)
        raise
    return file
