"""OpenAI's own OpenAPI document, when a path to it is given: holds each answer against the schema of its route."""

import json
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

#: Where Hone answers null and the document knows only presence; each is OpenAI's own habit elsewhere.
_MEANT = (
    (r"", r"^\$\.(first|last)_id$", "an empty list has no first and no last id"),
    (r"/evals", r"\.error$|\.sample\.error$", "a run without an error has null, as in OpenAI's examples"),
    (r"/files|/uploads", r"\.purpose$", "a file for evals has the purpose that it was uploaded with"),
    (r"/fine_tuning/jobs", r"^\$(\.data\[\d+\])?\.status$", "paused, as in OpenAI's example"),
    (r"/evals", r"\.testing_criteria\[\d+\]$", "code_bleu is Hone's own"),
    (r"/graders", r"\.grader$", "code_bleu is Hone's own"),
)

_REFUSAL = {
    "type": "object",
    "properties": {"error": {"$ref": "#/components/schemas/Error"}},
    "required": ["error"],
    "additionalProperties": False,
}


class Specification:
    """The document, and what in it belongs to an answer."""

    def __init__(self, path: Path) -> None:
        self._document: dict[str, Any] = _as_json_schema(json.loads(path.read_text(encoding="utf-8")))

    @cached_property
    def _routes(self) -> list[tuple[re.Pattern[str], dict[str, Any]]]:
        """Names of models may hold slashes."""
        return [
            (re.compile(re.sub(r"\{[^}]+\}", "[^/]+", re.sub(r"\{\w*model\w*\}", ".+", path))), methods)
            for path, methods in self._document["paths"].items()
        ]

    def problems(self, exchanges: Iterable[dict[str, Any]]) -> Iterator[str]:
        """What does not fit, one line each."""
        for exchange in exchanges:
            schema = self._schema(exchange)
            if schema is None or exchange["body"] is None:
                continue
            whole = {**schema, "components": self._document["components"]}
            said = f"{exchange['method']} {exchange['path']} {exchange['status']}"
            for error in Draft202012Validator(whole).iter_errors(exchange["body"]):
                if not any(
                    re.search(path, exchange["path"]) and re.search(place, error.json_path) for path, place, _ in _MEANT
                ):
                    yield f"{said}: {error.json_path}: {error.message:.200}"

    def _schema(self, exchange: dict[str, Any]) -> dict[str, Any] | None:
        """The schema of an answer; every refusal has the one shape. None for what the document does not have."""
        if exchange["status"] >= 400:
            return _REFUSAL
        for pattern, methods in self._routes:
            operation = methods.get(exchange["method"].lower())
            if operation and pattern.fullmatch(exchange["path"]):
                answer = operation["responses"].get(str(exchange["status"]))
                assert answer, f"{exchange['method']} {exchange['path']} answered {exchange['status']}"
                content = answer["content"].get("application/json")
                return dict(content["schema"]) if content else None
        return None


def _as_json_schema(node: Any) -> Any:
    """What stands in the document in OpenAPI 3.0's way beside 3.1's, as JSON Schema says it.

    ``oneOf`` becomes ``anyOf``: the document tells a message of the two kinds of text by shapes that overlap.
    """
    if isinstance(node, list):
        return [_as_json_schema(entry) for entry in node]
    if not isinstance(node, dict):
        return node
    made = {_NAMES.get(name, name): _as_json_schema(entry) for name, entry in node.items() if name != "nullable"}
    if made.get("exclusiveMinimum") is True:
        made["exclusiveMinimum"] = made.pop("minimum")
    return {"anyOf": [made, {"type": "null"}]} if node.get("nullable") is True else made


_NAMES = {"oneOf": "anyOf"}
