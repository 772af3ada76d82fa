"""/v1/uploads: a file that comes in parts, and is a file like any other once it is completed."""

from typing import Annotated, Any, BinaryIO, Literal

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import Field
from starlette.datastructures import UploadFile

from api import upload_parts
from api.deps import CurrentProject, PartsDep, SettingsDep, WriteSession
from api.json_body import StrictJsonRoute
from api.media_types import require_form
from api.middleware import MAX_PART_BYTES
from api.pagination import Listed
from api.schemas import Absent, FileObject, FilePurpose, file_object
from api.uploads import ExpiresAfter, clean_filename
from core.errors import InvalidRequestError, TooLargeError
from core.specs import Spec
from core.storage import CHUNK
from models.base import db_now
from models.tables import File, MultipartUpload

router = APIRouter(prefix="/v1/uploads", tags=["uploads"], route_class=StrictJsonRoute)

_PART_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["data"],
    "properties": {"data": {"type": "string", "format": "binary"}},
}


class UploadRequest(Spec):
    """The body of POST /v1/uploads. ``mime_type`` is asked for as at OpenAI and decides nothing here."""

    bytes: int = Field(ge=1)
    filename: str = Field(min_length=1, max_length=4096)
    mime_type: str = Field(max_length=256)
    purpose: FilePurpose
    expires_after: ExpiresAfter | None = None


class CompleteRequest(Spec):
    """The body of POST /v1/uploads/{id}/complete: the parts in their order; ``md5`` of the whole in hexadecimal."""

    part_ids: list[Annotated[str, Field(max_length=64)]] = Field(min_length=1, max_length=10_000)
    md5: str | None = Field(None, pattern=r"^[0-9a-fA-F]{32}$")


class UploadObject(Listed):
    """OpenAI's upload."""

    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["pending", "completed", "cancelled", "expired"]
    file: Absent[FileObject]


class PartObject(Listed):
    """OpenAI's part of an upload."""

    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str


def _upload_object(upload: MultipartUpload, file: File | None = None) -> UploadObject:
    return UploadObject.model_validate(
        {
            "id": upload.id,
            "bytes": upload.bytes,
            "created_at": int(upload.created_at),
            "expires_at": int(upload.expires_at),
            "filename": upload.filename,
            "purpose": upload.purpose,
            "status": upload.status,
            "file": file_object(file) if file else None,
        }
    )


@router.post("")
def create_upload(
    body: UploadRequest, project_id: CurrentProject, session: WriteSession, settings: SettingsDep
) -> UploadObject:
    """Announce a file that will come in parts, within an hour."""
    if body.bytes > settings.max_file_bytes:
        limit = f"{settings.max_file_bytes:,}"
        raise TooLargeError(f"The file is larger than {limit} bytes.", param="bytes", code="file_too_large")
    upload = MultipartUpload(
        project_id=project_id,
        filename=clean_filename(body.filename),
        purpose=body.purpose,
        bytes=body.bytes,
        file_expires_after=body.expires_after.seconds if body.expires_after else None,
        expires_at=db_now() + upload_parts.LIFETIME_SECONDS,
    )
    session.add(upload)
    session.flush()
    return _upload_object(upload)


@router.post(
    "/{upload_id}/parts",
    openapi_extra={"requestBody": {"content": {"multipart/form-data": {"schema": _PART_SCHEMA}}}},
)
async def create_part(upload_id: str, request: Request, project_id: CurrentProject, parts: PartsDep) -> PartObject:
    """Add a part, of at most 64 MiB; parts may come at once and in any order."""

    def require_pending() -> None:
        with parts.database.read() as session:
            upload_parts.find_pending(session, project_id, upload_id)

    require_form(request)
    await run_in_threadpool(require_pending)  # before the bytes are received
    async with request.form(max_files=1, max_fields=1, max_part_size=4096) as form:
        data = form.get("data")
        if not isinstance(data, UploadFile) or not data.size:
            raise InvalidRequestError(
                "'data' is missing or empty. Send multipart/form-data with a part 'data' that has a filename.",
                param="data",
                code="missing_field",
            )
        most = min(MAX_PART_BYTES, parts.settings.max_file_bytes)
        if data.size > most:
            raise TooLargeError(f"The part is larger than {most:,} bytes.", param="data", code="part_too_large")
        content: BinaryIO = data.file
        chunks = iter(lambda: content.read(CHUNK), b"")
        part = await run_in_threadpool(upload_parts.add_part, parts, project_id, upload_id, chunks)
    return PartObject(id=part.id, created_at=int(part.created_at), upload_id=part.upload_id)


@router.post("/{upload_id}/complete")
def complete_upload(upload_id: str, body: CompleteRequest, project_id: CurrentProject, parts: PartsDep) -> UploadObject:
    """Join the parts into a file, which is checked as POST /v1/files does; a refusal leaves the upload pending."""
    upload, file = upload_parts.complete(parts, project_id, upload_id, body.part_ids, body.md5)
    return _upload_object(upload, file)


@router.post("/{upload_id}/cancel")
def cancel_upload(upload_id: str, project_id: CurrentProject, parts: PartsDep) -> UploadObject:
    """Give an upload up; its parts are deleted."""
    return _upload_object(upload_parts.cancel(parts, project_id, upload_id))
