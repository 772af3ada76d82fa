"""/v1/files: datasets come in, results go out."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from sqlalchemy import select

from api.deps import CurrentProject, OnceDep, PartsDep, ReadSession, StorageDep
from api.downloads import answer_stored
from api.file_access import delete_file, get_file
from api.json_body import StrictJsonRoute
from api.media_types import require_form
from api.pagination import After, Order, Page, fetch_page, page_of
from api.schemas import Deleted, FileObject, file_object
from api.uploads import FORM_SCHEMA, read_form, store_upload
from models.tables import File

router = APIRouter(prefix="/v1/files", tags=["files"], route_class=StrictJsonRoute)


@router.post("", openapi_extra={"requestBody": {"content": {"multipart/form-data": {"schema": FORM_SCHEMA}}}})
async def create_file(request: Request, project_id: CurrentProject, parts: PartsDep, once: OnceDep) -> FileObject:
    """Upload a file. A dataset (purpose `fine-tune` or `evals`) is read whole and refused at its first bad line."""
    require_form(request)
    async with request.form(max_files=1, max_fields=8, max_part_size=4096) as form:
        upload = read_form(form)
        return file_object(await run_in_threadpool(store_upload, parts, project_id, upload, once))


@router.get("")
def list_files(
    project_id: CurrentProject,
    session: ReadSession,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Order = "desc",
    purpose: Annotated[str | None, Query(max_length=32)] = None,
) -> Page[FileObject]:
    """The project's files, uploaded and produced."""
    query = select(File).where(File.project_id == project_id)
    if purpose is not None:
        query = query.where(File.purpose == purpose)
    rows, has_more = fetch_page(session, query, File.id, after=after, limit=limit, order=order)
    return page_of([file_object(file) for (file,) in rows], has_more)


@router.get("/{file_id}")
def retrieve_file(file_id: str, project_id: CurrentProject, session: ReadSession) -> FileObject:
    """One file."""
    return file_object(get_file(session, project_id, file_id))


@router.get("/{file_id}/content", response_class=Response)
def download_file(
    file_id: str, request: Request, project_id: CurrentProject, session: ReadSession, storage: StorageDep
) -> Response:
    """A file's bytes, or a range of them; X-Content-SHA256 is the whole file's."""
    return answer_stored(storage, get_file(session, project_id, file_id), request.headers)


@router.delete("/{file_id}")
def remove_file(file_id: str, project_id: CurrentProject, parts: PartsDep) -> Deleted:
    """Delete a file that no model and no job that has not ended needs."""
    with parts.database.write() as session:
        key = delete_file(session, project_id, file_id)
    # After the commit: bytes without a row are waste, a row without bytes is a lie.
    parts.storage.delete(key)
    return Deleted(id=file_id, object="file")
