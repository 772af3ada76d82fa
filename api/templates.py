"""Templates of evaluations: text with {{item.…}} and, in criteria, {{sample.output_text}}; nothing else, no code."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

_OPEN = re.compile(r"\{\{")
_REFERENCE = re.compile(r"\{\{\s*(item(?:\.\w+)+|sample\.output_text)\s*\}\}")
SAMPLE = "sample.output_text"


def normalize(template: str, *, sample: bool) -> str:
    """The template with its references written without blanks. Raises ValueError, naming what is not allowed.

    ``sample``: whether {{sample.output_text}} may stand in it.
    """
    for opening in _OPEN.finditer(template):
        found = _REFERENCE.match(template, opening.start())
        if found is None or (found[1] == SAMPLE and not sample):
            shown = template[opening.start() : opening.start() + 40]
            known = "{{item.<name>}}" + (" and {{sample.output_text}}" if sample else "")
            raise ValueError(f"the template has {shown!r}; only {known} may stand in braces here")
    return _REFERENCE.sub(lambda found: "{{" + found[1] + "}}", template)


def item_paths(templates: Iterable[str]) -> set[str]:
    """The dotted paths below ``item`` that the templates use."""
    used = {found[1] for template in templates for found in _REFERENCE.finditer(template)}
    return {path.removeprefix("item.") for path in used if path != SAMPLE}


def missing_path(item: Mapping[str, Any], paths: Iterable[str]) -> str | None:
    """The first of the paths that an item does not have."""
    return next((path for path in sorted(paths) if _look_up(item, path) is _MISSING), None)


def render(template: str, item: Mapping[str, Any]) -> str:
    """A message with its references replaced by the item's values; what is not text is written as JSON."""
    return _REFERENCE.sub(lambda found: _as_text(_look_up(item, found[1].removeprefix("item."))), template)


_MISSING = object()


def _look_up(item: Mapping[str, Any], path: str) -> Any:
    value: Any = item
    for name in path.split("."):
        if not isinstance(value, Mapping) or value.get(name) is None:  # null is as good as missing
            return _MISSING
        value = value[name]
    return value


def _as_text(value: Any) -> str:
    if value is _MISSING:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
