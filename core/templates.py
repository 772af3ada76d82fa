"""Templates of evaluations: text with {{item.…}} and {{sample.output_text}}; nothing else, no code."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from core.errors import DatasetError

_OPEN = re.compile(r"\{\{")
_REFERENCE = re.compile(r"\{\{\s*(item(?:\.\w+)+|sample\.output_text)\s*\}\}")
#: Whatever stands in braces: rendering refuses what is no reference, also where nobody normalized the template.
_FIELD = re.compile(r"\{\{\s*([^{}]*?)\s*\}\}")
_SAMPLE = "sample.output_text"


def normalize(template: str, *, sample: bool) -> str:
    """The template with its references written without blanks. Raises ValueError, naming what is not allowed.

    ``sample``: whether {{sample.output_text}} may stand in it.
    """
    for opening in _OPEN.finditer(template):
        found = _REFERENCE.match(template, opening.start())
        if found is None or (found[1] == _SAMPLE and not sample):
            shown = template[opening.start() : opening.start() + 40]
            known = "{{item.<name>}}" + (" and {{sample.output_text}}" if sample else "")
            raise ValueError(f"the template has {shown!r}; only {known} may stand in braces here")
    return _REFERENCE.sub(lambda found: "{{" + found[1] + "}}", template)


def item_paths(templates: Iterable[str]) -> set[str]:
    """The dotted paths below ``item`` that the templates use."""
    used = {found[1] for template in templates for found in _REFERENCE.finditer(template)}
    return {path.removeprefix("item.") for path in used if path != _SAMPLE}


def names_sample(templates: Iterable[str]) -> bool:
    """Whether a template uses {{sample.output_text}}."""
    return any(found[1] == _SAMPLE for template in templates for found in _REFERENCE.finditer(template))


def missing_path(item: Mapping[str, Any], paths: Iterable[str]) -> str | None:
    """The first of the paths that an item does not have."""
    return next((path for path in sorted(paths) if _look_up(path, item) is None), None)


def render(template: str, values: Mapping[str, Any], *, where: str) -> str:
    """Replace every ``{{path}}`` once; what was put in is not looked at again.

    Texts go in as they are, numbers, lists and objects as JSON. ``where``: what the message names, such as "line 7".
    Raises DatasetError naming it and the field when there is no such field or it is null.
    """
    return _FIELD.sub(lambda found: _as_text(_require(found[1], values, where)), template)


def _look_up(path: str, values: Mapping[str, Any]) -> Any:
    """The value at a dotted path, or None: null is as good as missing."""
    found: Any = values
    for name in path.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _require(path: str, values: Mapping[str, Any], where: str) -> Any:
    found = _look_up(path, values)
    if found is None:
        raise DatasetError(
            f"{where}, field '{path:.200}': is missing or null ({_what_there_is(path, values):.300}). "
            "Give every item this field, or correct the template.",
            param="data_source",
            code="missing_field",
        )
    return found


def _what_there_is(path: str, values: Mapping[str, Any]) -> str:
    """What the deepest part of the path that is there holds."""
    parent, found = path.rpartition(".")[0], None
    while parent and (found := _look_up(parent, values)) is None:
        parent = parent.rpartition(".")[0]
    found = values if found is None else found
    if not isinstance(found, Mapping):
        return f"'{parent}' has no fields of its own"
    return f"there is {', '.join(f'{parent}.{name}'.strip('.') for name in list(found)[:10]) or 'nothing'}"


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
