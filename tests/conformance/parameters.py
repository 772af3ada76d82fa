"""Every parameter that a method of OpenAI's client takes, by its type annotations, and which of them a call used.

A place is written as ``method.dpo.hyperparameters.beta``. ``[]`` is an entry of a list, ``(text)`` one kind of a union,
``=value`` one value of an enumeration.
"""

from collections.abc import Callable, Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Literal, NotRequired, Required, Union, get_args, get_origin, get_type_hints

from typing_extensions import is_typeddict

#: What every method takes; not part of the API.
_COMMON = {"self", "extra_headers", "extra_query", "extra_body", "timeout", "return"}


def places_of(function: Callable[..., Any]) -> set[str]:
    """Every place that the method's parameters have."""
    found: set[str] = set()
    for name, annotation in _parameters(function).items():
        found |= set(_places(annotation, name, ()))
    return found


def used_places(function: Callable[..., Any], given: Mapping[str, Any]) -> set[str]:
    """The places that ``given`` fills."""
    parameters = _parameters(function)
    found: set[str] = set()
    for name, value in given.items():
        if name not in _COMMON:
            found |= set(_used(parameters[name], value, name))
    return found


def _parameters(function: Callable[..., Any]) -> dict[str, Any]:
    hints = get_type_hints(function, include_extras=True)
    return {name: hint for name, hint in hints.items() if name not in _COMMON}


def _members(annotation: Any) -> Iterator[Any]:
    """The members of a union, without what says that a value may be missing."""
    origin = get_origin(annotation)
    if origin in (Required, NotRequired, Annotated):
        yield from _members(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for member in get_args(annotation):
            yield from _members(member)
    elif annotation is not type(None) and getattr(annotation, "__name__", "") not in ("NotGiven", "Omit"):
        yield annotation


def _fields(shape: type[Any]) -> dict[str, Any]:
    return get_type_hints(shape, include_extras=True)


def _kind(shape: type[Any]) -> str | None:
    """The name by which a shape is told from others of its union."""
    for member in _members(_fields(shape).get("type", None)):
        values = get_args(member) if get_origin(member) is Literal else ()
        return str(values[0]) if len(values) == 1 else None
    return None


def _branch(shape: type[Any], shapes: list[type[Any]], place: str) -> str:
    kind = _kind(shape)
    return f"{place}({kind})" if kind and len(shapes) > 1 else place


def _inner(annotation: Any) -> Any | None:
    """The type of a list's entries."""
    arguments = get_args(annotation)
    origin = get_origin(annotation)
    if origin in (Literal, dict, tuple, None) or len(arguments) != 1 or getattr(origin, "__name__", "") == "PathLike":
        return None
    return arguments[0]


def _sorted_out(annotation: Any) -> tuple[list[type[Any]], list[Any], list[Any], list[Any]]:
    """The members of a union by what they are: shapes, types of lists' entries, enumerations, anything else."""
    shapes, inner, choices, plain = [], [], [], []
    for member in _members(annotation):
        if is_typeddict(member):
            shapes.append(member)
        elif get_origin(member) is Literal:
            choices.append(member)
        elif (entry := _inner(member)) is not None:
            inner.append(entry)
        else:
            plain.append(member)
    return shapes, inner, choices, plain


def _places(annotation: Any, place: str, above: tuple[Any, ...]) -> Iterator[str]:
    shapes, inner, choices, plain = _sorted_out(annotation)
    if str in plain:
        choices = []  # any text will do; the values are suggestions
    for shape in shapes:
        if shape in above:
            continue
        at = _branch(shape, shapes, place)
        for name, field in _fields(shape).items():
            if not (name == "type" and _kind(shape)):
                yield from _places(field, f"{at}.{name}", (*above, shape))
        if at != place:
            yield at
    for entry in inner:
        yield from _places(entry, f"{place}[]", above)
    yield from (f"{place}={value}" for choice in choices for value in get_args(choice) if len(get_args(choice)) > 1)
    if plain or (choices and all(len(get_args(choice)) == 1 for choice in choices)):
        yield place


def _used(annotation: Any, value: Any, place: str) -> Iterator[str]:
    shapes, inner, choices, plain = _sorted_out(annotation)
    if isinstance(value, Mapping) and shapes:
        for shape in _shapes_of(value, shapes):
            at = _branch(shape, shapes, place)
            for name, entry in value.items():
                yield from _used(_fields(shape).get(name, Any), entry, f"{at}.{name}")
            yield at
    elif isinstance(value, list | tuple) and inner:
        for entry in value:
            for kind in inner:
                yield from _used(kind, entry, f"{place}[]")
    elif any(value in get_args(choice) for choice in choices if isinstance(value, str)) and str not in plain:
        yield f"{place}={value}"
        yield place
    else:
        yield place


def _shapes_of(value: Mapping[str, Any], shapes: list[type[Any]]) -> list[type[Any]]:
    """The shapes that a value may have: by its kind, then by its fields; two may tell the same fields differently."""

    def fit(shape: type[Any]) -> tuple[bool, int]:
        return _kind(shape) == value.get("type"), len(set(value) & set(_fields(shape)))

    best = max(map(fit, shapes))
    return [shape for shape in shapes if fit(shape) == best]
