"""A stored object as a response: whole or one range of it, with what a client needs to check it and to go on."""

import re
from collections.abc import Mapping
from pathlib import PurePath
from urllib.parse import quote

from fastapi import Response
from fastapi.responses import StreamingResponse

from api.errors import error_response
from core.errors import NotFoundError
from core.storage import Storage
from models.tables import File

_MEDIA_TYPES = {
    ".csv": "text/csv; charset=utf-8",
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".png": "image/png",
    ".zip": "application/zip",
}
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)


class _UnsatisfiableError(Exception):
    """The range begins behind the object's end."""


def answer_stored(storage: Storage, file: File, headers: Mapping[str, str]) -> Response:
    """Answer with a file's bytes (RFC 9110, sections 13 and 14): 200, 206, 304 or 416.

    ``headers`` are the request's. Several ranges at once are answered with the whole, as the RFC allows.
    Raises NotFoundError when the row is there and the bytes are not.
    """
    etag = f'"{file.sha256}"'
    shared = {"ETag": etag, "Accept-Ranges": "bytes", "X-Content-SHA256": file.sha256}
    if _matches(headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=shared)
    try:
        start, end = _range(headers, etag, file.bytes) or (0, file.bytes)
    except _UnsatisfiableError:
        return _unsatisfiable(file, shared)
    try:
        chunks = storage.get(file.storage_key, start, end)
    except FileNotFoundError:
        raise NotFoundError(f"The content of file {file.id} is no longer in storage.", code="content_missing") from None
    partial = end - start < file.bytes
    if partial:
        shared["Content-Range"] = f"bytes {start}-{end - 1}/{file.bytes}"
    return StreamingResponse(
        chunks,
        status_code=206 if partial else 200,
        media_type=_MEDIA_TYPES.get(PurePath(file.filename).suffix.lower(), "application/octet-stream"),
        headers={
            **shared,
            "Content-Length": str(end - start),
            "Content-Disposition": _attachment(file.filename),
            "X-Content-Type-Options": "nosniff",
        },
    )


def _unsatisfiable(file: File, shared: Mapping[str, str]) -> Response:
    return error_response(
        416,
        f"The range begins behind the end of the file, which has {file.bytes:,} bytes.",
        code="range_not_satisfiable",
        headers={**shared, "Content-Range": f"bytes */{file.bytes}"},
    )


def _matches(header: str | None, etag: str) -> bool:
    """If-None-Match: a weak comparison with each of a list."""
    tags = [tag.strip().removeprefix("W/") for tag in (header or "").split(",")]
    return etag in tags or tags == ["*"]


def _range(headers: Mapping[str, str], etag: str, size: int) -> tuple[int, int] | None:
    """The bytes ``[start, end)`` that are asked for, or None for all; a header that makes no sense is ignored."""
    asked = _RANGE.fullmatch(headers.get("range", "").strip())
    if asked is None or asked.groups() == ("", ""):
        return None
    if headers.get("if-range", etag) != etag:
        return None
    first, last = asked.groups()
    if first and last and int(first) > int(last):
        return None
    start = int(first) if first else max(0, size - int(last))
    end = min(size, int(last) + 1) if first and last else size
    if start >= size:
        raise _UnsatisfiableError
    return start, end


def _attachment(filename: str) -> str:
    """Content-Disposition with the name in ASCII, and in full for those who read RFC 6266."""
    plain = re.sub(r'[^\x20-\x7e]|["\\%]', "_", filename)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"
