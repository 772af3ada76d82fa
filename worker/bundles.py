"""Folders as zips: packed as a stream, checked against their manifest, unpacked without trust."""

import json
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from core.storage import CHUNK
from worker.checkpoints import MANIFEST, sha256_of


class BundleError(Exception):
    """A folder or a zip that is not whole; the message says what is wrong with it."""


def verify(folder: Path) -> list[str]:
    """The names of a folder's files by its manifest, ``{"files": {NAME: SHA-256}}``, every one checked.

    Raises BundleError when the manifest is missing or a file is missing or differs.
    """
    names = []
    for name, digest in _manifest(folder).items():
        _require_flat(name)
        if not (folder / name).is_file():
            raise BundleError(f"{name} is missing")
        if sha256_of(folder / name) != digest:
            raise BundleError(f"{name} differs from its SHA-256 in {MANIFEST}")
        names.append(name)
    return names


def _manifest(folder: Path) -> dict[str, str]:
    try:
        files = json.loads((folder / MANIFEST).read_bytes())["files"]
        return {name: entry if isinstance(entry, str) else entry["sha256"] for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{MANIFEST} can't be read ({error!r})") from error


def _require_flat(name: str) -> None:
    """Only plain names: no folders, nothing that leads elsewhere."""
    if name in ("", ".", "..") or any(character in name for character in "/\\\0:"):
        raise BundleError(f"{name!r:.80} is no plain file name")


class _Sink:
    """What a ZipFile writes into: bytes that wait to be taken."""

    def __init__(self) -> None:
        self._waiting: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._waiting.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Nothing is buffered elsewhere."""

    def take(self) -> bytes:
        data = b"".join(self._waiting)
        self._waiting.clear()
        return data


def pack(folder: Path, names: list[str]) -> Iterator[bytes]:
    """Stream files of a folder as a zip, in this order, stored and not deflated: tensors hardly shrink.

    The same files give the same bytes. Memory stays at about 1 MiB.
    """
    sink = _Sink()
    with zipfile.ZipFile(cast("IO[bytes]", sink), "w", zipfile.ZIP_STORED) as archive:  # it only writes and flushes
        for name in names:
            info = zipfile.ZipInfo(name)
            info.file_size = (folder / name).stat().st_size  # known beforehand, so that 4 GiB switch to ZIP64
            with (folder / name).open("rb") as file, archive.open(info, "w") as member:
                while chunk := file.read(CHUNK):
                    member.write(chunk)
                    yield sink.take()
    yield sink.take()


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a flat zip into a new folder. Raises BundleError for a broken zip or a name that is not plain."""
    folder.mkdir(parents=True)
    try:
        with zipfile.ZipFile(archive) as opened:
            for info in opened.infolist():
                _require_flat(info.filename)
                with opened.open(info) as member, (folder / info.filename).open("xb") as file:
                    while chunk := member.read(CHUNK):
                        file.write(chunk)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, FileExistsError) as error:
        raise BundleError(f"{archive.name} is no zip that can be read ({error})") from error
