"""Templates of an evaluation: ``{{item.a.b}}`` and ``{{sample.output_text}}``, filled from items and answers."""

import json
import re
from collections.abc import Mapping
from typing import Any

from core.errors import DatasetError

_FIELD = re.compile(r"\{\{\s*([^{}]*?)\s*\}\}")


def render(template: str, values: Mapping[str, Any], *, line: int) -> str:
    """Replace every ``{{path}}`` once; what was put in is not looked at again.

    Texts go in as they are, numbers, lists and objects as JSON. ``line``: the item's line in its file, for the message.
    Raises DatasetError naming the line and the field when there is no such field or it is null.
    """
    return _FIELD.sub(lambda match: _as_text(_look_up(match[1], values, line)), template)


def _look_up(path: str, values: Mapping[str, Any], line: int) -> Any:
    found: Any = values
    parts = path.split(".")
    for depth, part in enumerate(parts):
        if not isinstance(found, Mapping) or found.get(part) is None:
            raise _missing(path, ".".join(parts[:depth]), found, line)
        found = found[part]
    return found


def _missing(path: str, parent: str, found: Any, line: int) -> DatasetError:
    if not isinstance(found, Mapping):
        there = f"'{parent}' has no fields of its own"
    else:
        there = f"there is {', '.join(f'{parent}.{name}'.strip('.') for name in list(found)[:10]) or 'nothing'}"
    return DatasetError(
        f"line {line}, field '{path:.200}': is missing or null ({there:.300}). "
        "Give every item this field, or correct the template.",
        param="data_source",
        code="missing_field",
    )


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
