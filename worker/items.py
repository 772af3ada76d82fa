"""An evaluation's items: read, rendered into prompts and references, and checked before anything is generated."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.dataset import Message, Role, read_item_lines
from core.errors import DatasetError
from core.specs import Criterion, EvaluationSpec, TemplateMessage
from core.templates import render
from worker.protocol import EvaluationInput

_CHUNK = 2**20


@dataclass(frozen=True)
class Item:
    """One item: its line in the file (1-based), its fields, the prompt's turns, and an answer if it brings one."""

    line: int
    fields: dict[str, Any]
    messages: tuple[Message, ...]
    output_text: str | None = None


def load_items(job: EvaluationInput) -> list[Item]:
    """Every item of the job. Raises DatasetError, naming line and field, where a template asks for what is missing."""
    found = read_item_lines(_chunks(job.items_file), job.max_line_bytes)
    items = [_item(number, record, job.spec) for number, record in found]
    if not items:
        raise DatasetError("The evaluation has no items. Give at least one.", param="data_source", code="empty_file")
    return items


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _item(line: int, record: dict[str, Any], spec: EvaluationSpec) -> Item:
    fields, given = record["item"], record.get("sample") if spec.source == "jsonl" else None
    text = given.get("output_text") if isinstance(given, dict) else None
    turns = tuple(_message(message, fields, line) for message in spec.messages)
    item = Item(line, fields, turns, text if isinstance(text, str) else None)
    for criterion in spec.criteria:
        render_pair(criterion, item, "" if spec.source == "completions" else item.output_text)
    return item


def _message(message: TemplateMessage, fields: dict[str, Any], line: int) -> Message:
    role: Role = "system" if message.role == "developer" else message.role
    return Message(role, render(message.content, {"item": fields}, where=f"line {line}"))


def render_pair(criterion: Criterion, item: Item, answer: str | None) -> tuple[str, str]:
    """Candidate and reference of a criterion. ``answer`` is {{sample.output_text}}; None where there is none."""
    values: dict[str, Any] = {"item": item.fields}
    if answer is not None:
        values["sample"] = {"output_text": answer}
    where = f"line {item.line}"
    return render(criterion.input, values, where=where), render(criterion.reference, values, where=where)
