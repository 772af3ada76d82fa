"""Storage: named objects in a folder or in S3, GCS or Azure, through obstore. An object is whole or absent."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlparse

import obstore
from obstore.store import LocalStore, ObjectStore, from_url

CHUNK = 2**20


@dataclass(frozen=True)
class Stored:
    """What was stored: its key, its size in bytes and its SHA-256 in hexadecimal."""

    key: str
    bytes: int
    sha256: str


class Storage:
    """Objects by key. Keys are made by Hone, never by a request."""

    def __init__(self, url: str) -> None:
        parsed = urlparse(url)
        if parsed.scheme == "file":
            folder = Path(unquote(parsed.path))
            folder.mkdir(parents=True, exist_ok=True)
            self._store: ObjectStore = LocalStore(folder)
        else:
            self._store = from_url(url)

    def put(self, key: str, chunks: Iterable[bytes]) -> Stored:
        """Store a stream of bytes under ``key``; readers see it whole, after this returns, or not at all."""
        digest = hashlib.sha256()
        size = 0

        def counted() -> Iterator[bytes]:
            nonlocal size
            for chunk in chunks:
                digest.update(chunk)
                size += len(chunk)
                yield chunk

        obstore.put(self._store, key, counted())
        return Stored(key, size, digest.hexdigest())

    def put_file(self, key: str, path: Path) -> Stored:
        """Store a local file under ``key``."""
        with path.open("rb") as file:
            return self.put(key, iter(lambda: file.read(CHUNK), b""))

    def get(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Stream the bytes ``[start, end)`` of an object. Raises FileNotFoundError at once when there is none."""
        size = obstore.head(self._store, key)["size"]
        end = size if end is None else min(end, size)
        return self._ranges(key, start, end)

    def _ranges(self, key: str, start: int, end: int) -> Iterator[bytes]:
        for offset in range(start, end, CHUNK):
            yield bytes(obstore.get_range(self._store, key, start=offset, end=min(offset + CHUNK, end)))

    def get_file(self, key: str, path: Path) -> None:
        """Copy an object into a local file."""
        with path.open("wb") as file:
            for chunk in self.get(key):
                file.write(chunk)

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is no error."""
        try:
            obstore.delete(self._store, key)
        except FileNotFoundError:
            return
