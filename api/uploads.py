"""An upload: its form is received into a spool, checked, stored, and only then written into the database."""

import hashlib
import json
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import PureWindowsPath
from typing import Any, BinaryIO, Literal

from fastapi.exceptions import RequestValidationError
from pydantic import Field, ValidationError
from starlette.datastructures import FormData, UploadFile

from api.deps import Parts
from api.once import Once
from api.schemas import FilePurpose
from api.stored_files import store_file
from core import dataset
from core.dataset import DatasetReport
from core.errors import InvalidRequestError, TooLargeError
from core.specs import Spec
from core.storage import CHUNK
from models.tables import File

_MAX_NAME_BYTES = 512
_CHECKS: dict[str, Callable[[Iterable[bytes], int], DatasetReport]] = {
    "fine-tune": dataset.check_training,
    "evals": dataset.check_items,
}

#: The form as /docs shows it; FastAPI can't read it from the endpoint's signature, because the key is checked first.
FORM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["purpose", "file"],
    "properties": {
        "purpose": {"type": "string", "enum": ["assistants", "batch", "evals", "fine-tune", "user_data", "vision"]},
        "file": {"type": "string", "format": "binary"},
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2592000},
    },
}


class ExpiresAfter(Spec):
    """When to delete the file: seconds after its creation, from an hour to 30 days."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=3600, le=2_592_000)


class UploadFields(Spec):
    """The form beside its file."""

    purpose: FilePurpose
    expires_after: ExpiresAfter | None = None


@dataclass(frozen=True)
class Upload:
    """A form that was received whole. ``filename`` is only shown."""

    fields: UploadFields
    filename: str
    content: BinaryIO
    bytes: int


def read_form(form: FormData) -> Upload:
    """Check a received form. Raises RequestValidationError and InvalidRequestError."""
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise InvalidRequestError(
            "'file' is missing. Send multipart/form-data with a part 'file' that has a filename.",
            param="file",
            code="missing_field",
        )
    fields: dict[str, Any] = {}
    for name, value in form.multi_items():
        if name.startswith("expires_after[") and name.endswith("]"):
            fields.setdefault("expires_after", {})[name[14:-1]] = value
        elif name != "file":
            fields[name] = value
    try:
        checked = UploadFields.model_validate(fields)
    except ValidationError as error:
        places = [{**entry, "loc": ("body", *entry["loc"])} for entry in error.errors(include_context=False)]
        raise RequestValidationError(places, body=fields) from None
    return Upload(checked, clean_filename(file.filename or ""), file.file, file.size or 0)


def clean_filename(name: str) -> str:
    """A name to show: the last part of the path, without control characters, at most 512 bytes."""
    last = PureWindowsPath(name).name  # knows both kinds of slash
    shown = "".join(character for character in last if unicodedata.category(character)[0] != "C")
    cut = shown.encode("utf-8")[:_MAX_NAME_BYTES].decode("utf-8", "ignore").strip()
    return cut if cut.strip(".") else "upload"


def store_upload(parts: Parts, project_id: str, upload: Upload, once: Once) -> File:
    """Check, store and register an upload. Whatever goes wrong, neither a row nor an object stays behind."""
    if once.asked:
        once.identify(project_id, _fingerprint(upload))
        once.look(parts.database)
    if upload.bytes > parts.settings.max_file_bytes:
        limit = f"{parts.settings.max_file_bytes:,}"
        raise TooLargeError(f"The file is larger than {limit} bytes.", param="file", code="file_too_large")
    upload.content.seek(0)
    report = check_content(
        _chunks(upload.content), upload.fields.purpose, upload.filename, parts.settings.max_line_bytes
    )
    upload.content.seek(0)
    return store_file(
        parts,
        project_id,
        _chunks(upload.content),
        filename=upload.filename,
        purpose=upload.fields.purpose,
        report=report,
        expires_after=upload.fields.expires_after.seconds if upload.fields.expires_after else None,
        once=once,
    )


def _fingerprint(upload: Upload) -> bytes:
    """What the form says, without the boundaries of its parts, which differ each time it is sent."""
    upload.content.seek(0)
    digest = hashlib.sha256()
    for chunk in _chunks(upload.content):
        digest.update(chunk)
    said = [upload.fields.model_dump(mode="json"), upload.filename, digest.hexdigest()]
    return json.dumps(said, sort_keys=True).encode()


def check_content(chunks: Iterable[bytes], purpose: str, filename: str, max_line_bytes: int) -> dict[str, Any] | None:
    """What the check of a dataset found; None for a purpose that has no check. Raises DatasetError."""
    check = _CHECKS.get(purpose)
    if check is None:
        return None
    report = check(chunks, max_line_bytes)
    dataset.require_usable(report, filename)
    return asdict(report)


def _chunks(content: BinaryIO) -> Iterator[bytes]:
    return iter(lambda: content.read(CHUNK), b"")
