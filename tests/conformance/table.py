"""docs/conformance.md, made of what the clients were told."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "conformance.md"
KINDS = ("sync", "async")

_HEAD = """\
# What OpenAI's client can do here

<!-- Made by `python -m tests.conformance`; `make test` compares it with what the clients were told. Do not edit. -->

OpenAI's own Python client, three versions of it, drives a Hone over HTTP: every method of its resources `files`,
`uploads`, `fine_tuning`, `models`, `evals` and `webhooks`, sync and async, with every parameter, every kind of a union
and every value of an enumeration that its types name. Methods and parameters are found by looking at the client, so
that one which the suite does not use makes it fail. Every answer is parsed in Pydantic's strict mode by the client's
own types, and may have no field that they lack, but `hone`.

## Methods

"works": sync and async. "–": that version of the client does not have the method.
"""

_REFUSED = """
## What is refused

Always a 400 with `param`, never silently dropped. Everything below a refused place is refused with it.
"""

_DIFFERENCES = """
## Where an answer differs from the client's types
"""


def page(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """The page; ``reports`` by version, as ``driver`` writes them."""
    versions = list(reports)
    methods = list(dict.fromkeys(name for version in versions for name in reports[version]["sync"]["methods"]))
    rows = [[f"`{name}`", *(_outcome(reports[version], name) for version in versions)] for name in sorted(methods)]
    told = {words for version in versions for kind in KINDS for words in reports[version][kind]["differences"]}
    return "\n".join(
        [
            _HEAD,
            *_table(["method", *versions], rows),
            _REFUSED,
            *_table(["method", "place", "versions", "answer"], _refusals(reports)),
            _DIFFERENCES,
            *(f"- {words}" for words in sorted(told)),
            "",
        ]
    )


def _outcome(report: Mapping[str, Any], method: str) -> str:
    if method not in report["sync"]["methods"]:
        return "–"
    called = [method in report[kind]["called"] for kind in KINDS]
    return "works" if all(called) else "refused" if not any(called) else "differs"


def _refusals(reports: Mapping[str, Mapping[str, Any]]) -> Iterator[list[str]]:
    """A row for each place; values of one enumeration that are refused alike share a row."""
    values: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    versions: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for version, kind, method, place, reason in _each(reports):
        at, _, value = place.partition("=")
        key = (method, at, _lasting(reason))
        values[key].append(value)
        versions[key].append(version if kind == "sync" else "")
    for (method, at, reason), found in sorted(values.items()):
        named = sorted(filter(None, set(found)))
        shown = f"`{at}`" + (f" = {', '.join(f'`{value}`' for value in named)}" if named else "")
        which = [version for version in reports if version in versions[method, at, reason]]
        yield [f"`{method}`", shown, "all" if len(which) == len(reports) else ", ".join(which), reason]


def _each(reports: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, str, str, str]]:
    for version, report in reports.items():
        for kind in KINDS:
            for method, places in report[kind]["refused"].items():
                for place, reason in places.items():
                    yield version, kind, method, place, reason


def _lasting(reason: str) -> str:
    """A reason without what was sent, and fit for a cell of a table."""
    return re.sub(r" You sent .*$", "", reason).replace("|", "\\|")


def _table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows]]
