"""Files: upload, the list, and what is in a dataset."""

from typing import Any, Literal, get_args

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from api import files, imports
from api.dashboard.job_form import refusal_of
from api.dashboard.page import PageRoute, ViewerDep, go_to, page
from api.dashboard.preflight_pages import ChoiceDep, context_of
from api.deps import Parts, PartsDep, ReadSession, StorageDep
from api.file_access import get_file
from api.imports import ImportRequest
from api.once import Once
from api.pagination import After, fetch_page
from api.uploads import read_form, store_upload
from core.errors import HoneError
from models.base import db_now
from models.tables import File, FileImport, Job

router = APIRouter(route_class=PageRoute)

_A_PAGE = 25
#: Imports that the list shows: those under way, and what became of the last hour's.
_IMPORTS = 10
_IMPORTS_SECONDS = 3600
Shown = Literal["all", "fine-tune", "evals", "fine-tune-results", "user_data"]


def _imports(session: Session, viewer: ViewerDep) -> list[FileImport]:
    """Imports that are of interest; one that has become a file is in the list of files."""
    fresh = or_(FileImport.status.in_(("queued", "running")), FileImport.updated_at > db_now() - _IMPORTS_SECONDS)
    mine = select(FileImport).where(FileImport.project_id == viewer.project_id, FileImport.status != "cancelled", fresh)
    return list(session.scalars(mine.order_by(FileImport.id.desc()).limit(_IMPORTS)))


def _list(
    request: Request,
    session: Session,
    viewer: ViewerDep,
    parts: Parts,
    show: Shown,
    after: str | None,
    status: int = 200,
    **more: Any,
) -> Response:
    query = select(File).where(File.project_id == viewer.project_id)
    if show != "all":
        query = query.where(File.purpose == show)
    found, has_more = fetch_page(session, query, File.id, after=after, limit=_A_PAGE, order="desc")
    context: dict[str, Any] = {"refusal": None, "problems": None, "import_refusal": None, "typed": {}, **more}
    rows = [file for (file,) in found]
    return page(
        request,
        "files.html",
        status,
        rows=rows,
        more=has_more,
        show=show,
        after=after,
        shown=get_args(Shown),
        allowed=parts.settings.allowed_hub_datasets,
        imports=_imports(session, viewer),
        **context,
    )


@router.get("/files")
def list_page(
    request: Request, viewer: ViewerDep, session: ReadSession, parts: PartsDep, show: Shown = "all", after: After = None
) -> Response:
    """The files, newest first, and the forms for another."""
    return _list(request, session, viewer, parts, show, after)


@router.post("/files")
async def upload(request: Request, viewer: ViewerDep, parts: PartsDep) -> Response:
    """Take a file; one that can't be used is refused with each of its problems."""
    async with request.form(max_files=1, max_fields=8, max_part_size=4096) as form:
        try:
            received = read_form(form)
            file = await run_in_threadpool(store_upload, parts, viewer.project_id, received, Once(request))
        except (HoneError, RequestValidationError) as error:
            return await run_in_threadpool(_refused, request, parts, viewer, error)
    return go_to(f"/files/{file.id}")


def _refused(request: Request, parts: Parts, viewer: ViewerDep, error: HoneError | RequestValidationError) -> Response:
    status, problems = 400, None
    if isinstance(error, HoneError):
        status = error.status
        report: dict[str, Any] = (error.details or {}).get("report", {})
        problems = report.get("problems")
    with parts.database.read() as session:
        return _list(request, session, viewer, parts, "all", None, status, refusal=refusal_of(error), problems=problems)


@router.get("/files/imports")
def imports_part(request: Request, viewer: ViewerDep, session: ReadSession) -> Response:
    """The imports alone, which a page asks for while any is under way."""
    return page(request, "imports.html", imports=_imports(session, viewer))


@router.post("/files/imports")
async def begin_import(request: Request, viewer: ViewerDep, parts: PartsDep) -> Response:
    """Begin to import a dataset; its progress is shown above the files."""
    async with request.form(max_files=0, max_fields=8, max_part_size=4096) as form:
        typed = {name: text.strip() for name, text in form.items() if isinstance(text, str) and text.strip()}
    return await run_in_threadpool(_begin_import, request, viewer, parts, typed)


def _begin_import(request: Request, viewer: ViewerDep, parts: Parts, typed: dict[str, str]) -> Response:
    status = 400
    try:
        imports.begin(parts, viewer.project_id, ImportRequest.model_validate(typed))
        return go_to("/files")
    except ValidationError as error:
        fields = [{**entry, "loc": ("body", *entry["loc"])} for entry in error.errors(include_context=False)]
        refusal = refusal_of(RequestValidationError(fields, body=typed))
    except HoneError as error:
        refusal, status = refusal_of(error), error.status
    with parts.database.read() as session:
        more = {"import_refusal": refusal, "typed": typed}
        return _list(request, session, viewer, parts, "all", None, status, **more)


@router.post("/files/imports/{import_id}/cancel")
def cancel_import(import_id: str, viewer: ViewerDep, parts: PartsDep) -> Response:
    """Give an import up."""
    with parts.database.write() as session:
        imports.cancel_import(import_id, viewer.project_id, session)
    return go_to("/files")


@router.get("/files/{file_id}")
def file_page(
    file_id: str,
    request: Request,
    viewer: ViewerDep,
    parts: PartsDep,
    session: ReadSession,
    choice: ChoiceDep,
) -> Response:
    """One file; of a dataset, what is in it."""
    file = get_file(session, viewer.project_id, file_id)
    made_by = session.get(Job, file.job_id) if file.job_id else None
    if file.purpose != "fine-tune":
        return page(request, "file.html", file=file, made_by=made_by)
    context = context_of(parts, session, viewer, file, choice)
    return page(request, "dataset.html", made_by=made_by, **context)


@router.get("/files/{file_id}/content")
def content(file_id: str, request: Request, viewer: ViewerDep, session: ReadSession, storage: StorageDep) -> Response:
    """Download a file."""
    return files.download_file(file_id, request, viewer.project_id, session, storage)


@router.post("/files/{file_id}/delete")
def delete(file_id: str, viewer: ViewerDep, parts: PartsDep) -> Response:
    """Delete a file that nothing needs."""
    files.remove_file(file_id, viewer.project_id, parts)
    return go_to("/files")
