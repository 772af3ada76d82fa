"""An evaluation's items: read, rendered into prompts and references, and checked before anything is generated."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.dataset import Message, Role, read_items
from core.errors import DatasetError
from core.records import read_lines
from core.specs import CodeBleuCriterion, EvaluationSpec, TemplateMessage
from core.templates import render
from worker.protocol import EvaluationInput

_CHUNK = 2**20


@dataclass(frozen=True)
class Item:
    """One item: its line in the file (1-based), its fields, and the prompt's turns."""

    line: int
    fields: dict[str, Any]
    messages: tuple[Message, ...]


def load_items(job: EvaluationInput) -> list[Item]:
    """Every item of the job. Raises DatasetError, naming line and field, where a template asks for what is missing."""
    numbers = [number for number, raw in read_lines(_chunks(job.items_file), job.max_line_bytes) if raw.strip()]
    found = read_items(_chunks(job.items_file), job.max_line_bytes)
    items = [_item(number, fields, job.spec) for number, fields in zip(numbers, found, strict=True)]
    if not items:
        raise DatasetError("The evaluation has no items. Give at least one.", param="data_source", code="empty_file")
    return items


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _item(line: int, fields: dict[str, Any], spec: EvaluationSpec) -> Item:
    item = Item(line, fields, tuple(_message(message, fields, line) for message in spec.messages))
    for criterion in spec.criteria:
        render_pair(criterion, item, "")
    return item


def _message(message: TemplateMessage, fields: dict[str, Any], line: int) -> Message:
    role: Role = "system" if message.role == "developer" else message.role
    return Message(role, render(message.content, {"item": fields}, where=f"line {line}"))


def render_pair(criterion: CodeBleuCriterion, item: Item, code: str) -> tuple[str, str]:
    """Candidate and reference of a criterion, given the code of the item's answer."""
    values = {"item": item.fields, "sample": {"output_text": code}}
    where = f"line {item.line}"
    return render(criterion.input, values, where=where), render(criterion.reference, values, where=where)
