"""The items of a run: a file of the project, or a list in the request, which becomes one."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from api.deps import Parts
from api.file_access import require_input
from api.run_request import InlineItem, InlineSource, RunRequest
from api.stored_files import store_file
from core import dataset
from core.errors import InvalidRequestError
from core.templates import missing_path
from models.tables import File

#: What a file is called whose items came in the request.
INLINE = "inline.jsonl"


@dataclass(frozen=True)
class Needs:
    """What the templates of a run and its eval name: fields of each item, and whether each item brings an answer."""

    paths: set[str]
    sample: bool


def items_file_of(parts: Parts, project_id: str, body: RunRequest, needs: Needs, name: str = INLINE) -> File:
    """The file of the run's items, each of which has what the templates name. Raises InvalidRequestError.

    ``name``: of a new file, when the request brings the items.
    """
    source = body.data_source.source
    if isinstance(source, InlineSource):
        records = [_record(entry) for entry in source.content]
        _require(records, needs, "data_source.source.content")
        lines = (json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records)
        report = {"format": "items", "samples": len(records), "problem_count": 0, "problems": []}
        return store_file(parts, project_id, lines, filename=name, purpose="evals", report=report)
    param = "data_source.source.id"
    with parts.database.read() as session:
        file = require_input(session, project_id, source.id, purpose="evals", param=param)
    _require(_read_records(parts, file), needs, param)
    return file


def _record(entry: InlineItem) -> dict[str, Any]:
    return {"item": entry.item} if entry.sample is None else {"item": entry.item, "sample": entry.sample}


def _read_records(parts: Parts, file: File) -> Iterator[dict[str, Any]]:
    chunks = parts.storage.get(file.storage_key)
    return (record for _, record in dataset.read_item_lines(chunks, parts.settings.max_line_bytes))


def _require(records: Iterable[dict[str, Any]], needs: Needs, param: str) -> None:
    for number, record in enumerate(records, start=1):
        if (path := missing_path(record["item"], needs.paths)) is not None:
            raise InvalidRequestError(
                f"Item {number} has no '{path}', which a template names as {{{{item.{path}}}}}. "
                "Add it to the item or change the template.",
                param=param,
                code="missing_field",
            )
        if needs.sample and not isinstance((record.get("sample") or {}).get("output_text"), str):
            raise InvalidRequestError(
                f"Item {number} brings no answer, which a criterion names as {{{{sample.output_text}}}}. Write "
                '{"item": …, "sample": {"output_text": …}}, or have a model asked by the data source \'completions\'.',
                param=param,
                code="missing_field",
            )
