"""The items of a run: a file of the project, or a list in the request, which becomes one."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from api.deps import Parts
from api.file_access import require_input
from api.run_request import InlineSource, RunRequest
from api.uploads import store_file
from core import dataset
from core.errors import InvalidRequestError
from core.templates import missing_path
from models.tables import File


def items_file_of(parts: Parts, project_id: str, body: RunRequest, paths: set[str]) -> File:
    """The file of the run's items, each of which has what the templates name. Raises InvalidRequestError."""
    source = body.data_source.source
    if isinstance(source, InlineSource):
        items = [entry.item for entry in source.content]
        _require_paths(items, paths, "data_source.source.content")
        lines = (json.dumps({"item": item}, ensure_ascii=False).encode() + b"\n" for item in items)
        report = {"format": "items", "samples": len(items), "problem_count": 0, "problems": []}
        return store_file(parts, project_id, lines, filename="inline.jsonl", purpose="evals", report=report)
    param = "data_source.source.id"
    with parts.database.read() as session:
        file = require_input(session, project_id, source.id, purpose="evals", param=param)
    _require_paths(_read_items(parts, file), paths, param)
    return file


def _read_items(parts: Parts, file: File) -> Iterator[dict[str, Any]]:
    return dataset.read_items(parts.storage.get(file.storage_key), parts.settings.max_line_bytes)


def _require_paths(items: Iterable[dict[str, Any]], paths: set[str], param: str) -> None:
    for number, item in enumerate(items, start=1):
        if (path := missing_path(item, paths)) is not None:
            raise InvalidRequestError(
                f"Item {number} has no '{path}', which a template names as {{{{item.{path}}}}}. "
                "Add it to the item or change the template.",
                param=param,
                code="missing_field",
            )
