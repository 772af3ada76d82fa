"""Storage: named objects in a folder or in S3, GCS or Azure, through obstore. An object is whole or absent."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlparse

import obstore
from obstore.store import LocalStore, ObjectStore, from_url

if TYPE_CHECKING:
    from obstore.store import RetryConfig

CHUNK = 2**20

#: How long a store that fails is tried again; obstore's own 3 minutes would hold a thread of the API for as long. A
#: request has 30 s and a connection 5 s, obstore's defaults: so an endpoint that hangs is told after 30 s. These are
#: not set here, because client options that are passed replace those of the environment (AWS_ALLOW_HTTP).
_RETRY: "RetryConfig" = {
    "retry_timeout": timedelta(seconds=25),
    "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=5), "base": 2},
}


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
            self._store = from_url(url, retry_config=_RETRY)

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

    def list(self, prefix: str) -> Iterator[str]:
        """The keys below ``prefix``, a folder of keys without a slash at its end, in no particular order."""
        for batch in obstore.list(self._store, prefix):
            for entry in batch:
                yield entry["path"]
