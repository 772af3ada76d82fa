"""What a failed validation tells the user: the field's dotted path, what is wrong, and what is allowed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel

#: Errors of the last element of a path, which is not in the body (or whose value is at fault as a key).
_KEY_ERRORS = {"missing", "extra_forbidden"}
_SHOWN_INPUT = 80


@dataclass(frozen=True)
class Explanation:
    """An error's words."""

    message: str
    param: str | None
    code: str | None = None


def explain(error: RequestValidationError, route: Any = None) -> Explanation:
    """The first field that is at fault, with every reason that was found for it."""
    found = list(error.errors())
    if found[0]["type"] == "json_invalid":
        reason, position = found[0]["ctx"]["error"], found[0]["loc"][-1]
        where = f" (at character {position})" if position else ""
        return Explanation(f"The body is not JSON that can be used: {reason}{where}.", None, "invalid_json")
    paths = [_path(entry, error.body) for entry in found]
    first = paths[0]
    reasons = [_reason(entry) for entry, path in zip(found, paths, strict=True) if path == first]
    param = _dotted(first)
    others = len(set(map(tuple, paths))) - 1
    more = f" ({others} more {'field has' if others == 1 else 'fields have'} errors.)" if others else ""
    if found[0]["type"] == "extra_forbidden":
        allowed = ", ".join(_fields_at(_body_type(route), first[:-1]))
        known = f" Known here: {allowed}." if allowed else ""
        return Explanation(f"Unknown field '{param}'.{known}{more}", param, "unknown_field")
    if found[0]["type"] == "missing":
        message = f"'{param}' is missing." if param else "A JSON body is missing (Content-Type: application/json)."
        return Explanation(message + more, param, "missing_field")
    code = "unsupported" if found[0]["type"] == "unsupported" else "invalid_value"
    where = f"'{param}': " if param else "The body: "
    return Explanation(f"{where}{' or '.join(dict.fromkeys(reasons))}.{_sent(found[0])}{more}", param, code)


def _reason(entry: dict[str, Any]) -> str:
    message = str(entry["msg"]).removeprefix("Value error, ").rstrip(".")
    return message[0].lower() + message[1:]


def _sent(entry: dict[str, Any]) -> str:
    value = entry.get("input")
    return f" You sent {value!r:.{_SHOWN_INPUT}}." if isinstance(value, str | int | float | None) else ""


def _path(entry: dict[str, Any], body: Any) -> list[str | int]:
    """The error's place without the names that pydantic puts in for the members of a union."""
    kind, *places = entry["loc"]
    if kind != "body":
        return list(places)
    path: list[str | int] = []
    value = body
    for index, place in enumerate(places):
        last = index == len(places) - 1
        if place in value if isinstance(value, dict) else isinstance(value, list) and isinstance(place, int):
            value = value[place]
            path.append(place)
        elif last and entry["type"] in _KEY_ERRORS:
            path.append(place)
    return path


def _dotted(path: Sequence[str | int]) -> str | None:
    text = "".join(f"[{place}]" if isinstance(place, int) else f".{place:.100}" for place in path)
    return text.lstrip(".") or None


def _body_type(route: Any) -> Any:
    """The model of a route's body, if it has one."""
    field = getattr(route, "body_field", None)
    return field.field_info.annotation if field is not None else None


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Every model that an annotation may mean."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _fields_at(annotation: Any, path: Sequence[str | int]) -> list[str]:
    """The names of the fields that the body may have at ``path``."""
    models = list(_models(annotation))
    for place in path:
        if isinstance(place, str):
            inner = [model.model_fields[place].annotation for model in models if place in model.model_fields]
            models = [model for found in inner for model in _models(found)]
    return list(dict.fromkeys(name for model in models for name in model.model_fields))
