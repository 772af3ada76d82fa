"""A file that comes in parts: each part is an object of its own until the upload is completed, cancelled or expires."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from tempfile import TemporaryFile
from typing import IO

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from api.deps import Parts
from api.stored_files import store_file
from api.uploads import check_content
from core.errors import InvalidRequestError, NotFoundError, TooLargeError
from core.ids import new_id
from core.storage import CHUNK, Storage
from models.base import db_now
from models.tables import File, MultipartUpload, UploadPart

#: As at OpenAI.
LIFETIME_SECONDS = 3_600
#: What the parts of an upload may hold beyond twice its size: parts that were sent again because an answer was lost.
_SPARE_BYTES = 128 * 2**20
#: Expired uploads that one sweep ends.
_SWEEP = 100


def find_pending(session: Session, project_id: str, upload_id: str, *, lock: bool = False) -> MultipartUpload:
    """A project's upload that has not ended. Raises NotFoundError and InvalidRequestError."""
    query = select(MultipartUpload).where(MultipartUpload.id == upload_id, MultipartUpload.project_id == project_id)
    upload = session.scalar(query.with_for_update() if lock else query)
    if upload is None:
        raise NotFoundError(f"No upload '{upload_id:.80}' exists in this project.", code="not_found")
    expired = upload.status == "pending" and session.scalar(select(db_now() > upload.expires_at))
    if expired or upload.status != "pending":
        word = "expired" if expired else upload.status
        made = f" as the file {upload.file_id}" if upload.file_id else ""
        raise InvalidRequestError(
            f"The upload {upload.id} is {word}{made}. Begin another with POST /v1/uploads.",
            param="upload_id",
            code="upload_not_pending",
        )
    return upload


def add_part(parts: Parts, project_id: str, upload_id: str, chunks: Iterable[bytes]) -> UploadPart:
    """Store a part; when the upload has ended meanwhile, neither a row nor an object stays."""
    part_id = new_id("part_")
    key = f"uploads/{upload_id}/{part_id}"
    try:
        stored = parts.storage.put(key, chunks)
        with parts.database.write() as session:
            upload = find_pending(session, project_id, upload_id, lock=True)
            before = session.scalar(select(func.sum(UploadPart.bytes)).where(UploadPart.upload_id == upload.id)) or 0
            if before + stored.bytes > 2 * upload.bytes + _SPARE_BYTES:
                raise TooLargeError(
                    f"The parts of upload {upload.id} hold far more than its {upload.bytes:,} bytes. Begin another.",
                    param="data",
                    code="file_too_large",
                )
            part = UploadPart(id=part_id, upload_id=upload.id, bytes=stored.bytes, storage_key=key)
            session.add(part)
            session.flush()
    except BaseException:
        parts.storage.delete(key)
        raise
    return part


def complete(
    parts: Parts, project_id: str, upload_id: str, part_ids: Sequence[str], md5: str | None
) -> tuple[MultipartUpload, File]:
    """Join the parts in the order of ``part_ids`` into a file, checked like any other. Raises InvalidRequestError."""
    with parts.database.read() as session:
        upload = find_pending(session, project_id, upload_id)
        keys = _keys_in_order(session, upload, part_ids)
    left: list[str] = []

    def end(session: Session, file: File) -> None:
        nonlocal upload, left
        upload = find_pending(session, project_id, upload_id, lock=True)
        left = _end(session, upload, "completed")
        upload.file_id = file.id

    # Spooled, as a form is: obstore can't read one object while it takes the bytes of another.
    with TemporaryFile() as spool:
        _join(parts.storage, keys, spool, md5)
        report = check_content(_chunks(spool), upload.purpose, upload.filename, parts.settings.max_line_bytes)
        file = store_file(
            parts,
            project_id,
            _chunks(spool),
            filename=upload.filename,
            purpose=upload.purpose,
            report=report,
            expires_after=upload.file_expires_after,
            together=end,
        )
    _delete(parts.storage, left)
    return upload, file


def cancel(parts: Parts, project_id: str, upload_id: str) -> MultipartUpload:
    """End an upload and delete its parts."""
    with parts.database.write() as session:
        upload = find_pending(session, project_id, upload_id, lock=True)
        left = _end(session, upload, "cancelled")
    _delete(parts.storage, left)
    return upload


def expire_uploads(session: Session) -> Sequence[str]:
    """End the uploads whose hour is over; returns the keys of their parts, to be deleted after the commit."""
    over = select(MultipartUpload).where(MultipartUpload.status == "pending", MultipartUpload.expires_at < db_now())
    uploads = session.scalars(over.order_by(MultipartUpload.id).limit(_SWEEP).with_for_update(skip_locked=True)).all()
    return [key for upload in uploads for key in _end(session, upload, "expired")]


def _end(session: Session, upload: MultipartUpload, status: str) -> list[str]:
    """Set the status and delete the parts' rows; the keys of the parts."""
    mine = UploadPart.upload_id == upload.id
    keys = list(session.scalars(select(UploadPart.storage_key).where(mine)))
    session.execute(delete(UploadPart).where(mine))
    upload.status = status
    session.flush()
    return keys


def _delete(storage: Storage, keys: Iterable[str]) -> None:
    for key in keys:
        storage.delete(key)


def _keys_in_order(session: Session, upload: MultipartUpload, part_ids: Sequence[str]) -> list[str]:
    """The parts' keys. Raises InvalidRequestError for an unknown or doubled part, or a sum that was not announced."""
    rows = {row.id: row for row in session.scalars(select(UploadPart).where(UploadPart.upload_id == upload.id))}
    for place, part_id in enumerate(part_ids):
        if part_id not in rows or part_id in part_ids[:place]:
            what = "is named twice" if part_id in rows else "is no part of this upload"
            raise InvalidRequestError(f"'part_ids[{place}]': '{part_id:.80}' {what}.", param=f"part_ids[{place}]")
    size = sum(rows[part_id].bytes for part_id in part_ids)
    if size != upload.bytes:
        raise InvalidRequestError(
            f"The parts hold {size:,} bytes, and the upload was announced with {upload.bytes:,}. "
            "Name all of its parts in their order.",
            param="part_ids",
            code="wrong_size",
        )
    return [rows[part_id].storage_key for part_id in part_ids]


def _join(storage: Storage, keys: Sequence[str], spool: IO[bytes], md5: str | None) -> None:
    """Copy all parts into ``spool``. Raises InvalidRequestError for another MD5, or when the upload ends meanwhile."""
    digest = hashlib.md5(usedforsecurity=False)
    try:
        for chunk in chain.from_iterable(map(storage.get, keys)):
            digest.update(chunk)
            spool.write(chunk)
    except FileNotFoundError:
        raise InvalidRequestError(
            "The upload ended while its parts were joined. Begin another.", param="upload_id", code="upload_not_pending"
        ) from None
    if md5 is not None and digest.hexdigest() != md5.lower():
        raise InvalidRequestError(
            f"'md5': the parts, joined, have the MD5 {digest.hexdigest()}. Send the damaged part again.",
            param="md5",
            code="md5_mismatch",
        )


def _chunks(spool: IO[bytes]) -> Iterator[bytes]:
    spool.seek(0)
    return iter(lambda: spool.read(CHUNK), b"")
