"""An evaluation's figures as pages show them: the tuned model beside its base, part by part."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: CodeBLEU's parts by their names in ``scores.json``.
PARTS = {
    "ngram": "n-gram match",
    "weighted_ngram": "weighted n-gram match",
    "syntax": "syntax match",
    "dataflow": "dataflow match",
}
#: What can be wrong with an answer, in words.
COUNTS = {
    "passed": "passed",
    "failed": "failed",
    "exact_match": "exact match",
    "unparsable": "does not parse",
    "empty": "empty",
    "truncated": "cut at the limit",
    "refused": "too large to score",
}


@dataclass(frozen=True)
class Bar:
    """One figure of one model, with its interval when it has one; all between 0 and 1."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Line:
    """One part of a score: the model's, and its base's beside it."""

    label: str
    tuned: Bar | None
    base: Bar | None
    headline: bool = False

    @property
    def change(self) -> float | None:
        """How much better the tuned model is."""
        return None if self.tuned is None or self.base is None else self.tuned.value - self.base.value


@dataclass(frozen=True)
class Criterion:
    """One criterion's figures over all items."""

    name: str
    kind: str
    metric: str
    threshold: float | None
    lines: list[Line]
    #: What was counted: label, the model's number, the base's.
    counts: list[tuple[str, int | None, int | None]]
    verdict: str | None

    @property
    def headline(self) -> Line | None:
        """The score itself."""
        return next((line for line in self.lines if line.headline), None)


def criteria_of(scores: Mapping[str, Any] | None) -> list[Criterion]:
    """The figures of ``scores.json``; none before the run has completed."""
    return [_criterion(entry) for entry in (scores or {}).get("criteria", [])]


def _criterion(entry: Mapping[str, Any]) -> Criterion:
    tuned, base = entry.get("model") or {}, entry.get("base") or {}
    score = next((name for name in ("codebleu", "score", "mean") if name in tuned), "codebleu")
    lines = [Line(_title(entry, score), _bar(tuned, score), _bar(base, score), headline=True)]
    lines += [Line(title, _bar(tuned, name), _bar(base, name)) for name, title in PARTS.items() if name in tuned]
    counts = [(title, tuned.get(name), base.get(name)) for name, title in COUNTS.items() if name in tuned]
    return Criterion(
        name=str(entry.get("name", "")),
        kind=str(entry.get("type", "")),
        metric=str(entry.get("metric") or ""),
        threshold=entry.get("pass_threshold"),
        lines=[line for line in lines if line.tuned is not None],
        counts=counts,
        verdict=(entry.get("verdict") or {}).get("sentence"),
    )


def _title(entry: Mapping[str, Any], score: str) -> str:
    return "CodeBLEU" if score == "codebleu" else str(entry.get("type", "score")).replace("_", " ")


def _bar(side: Mapping[str, Any], name: str) -> Bar | None:
    value = side.get(name)
    if not isinstance(value, int | float):
        return None
    low, high = _interval(side, name)
    return Bar(float(value), low, high)


def _interval(side: Mapping[str, Any], name: str) -> tuple[float | None, float | None]:
    found = (side.get("intervals") or {}).get(name)
    if isinstance(found, list | tuple) and len(found) == 2:
        return float(found[0]), float(found[1])
    return None, None
