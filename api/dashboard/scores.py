"""An evaluation's figures as pages show them: the tuned model beside its base, part by part."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from api.dashboard.shown import NO_BREAK, percent

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
class Change:
    """How much better the tuned model is than its base, taken item by item where the items are known."""

    value: float
    low: float | None
    high: float | None

    @property
    def direction(self) -> Literal["good", "bad", "soft"]:
        """Better or worse only if the whole interval is; a change without one shows nothing."""
        if self.low is None or self.high is None:
            return "soft"
        return "good" if self.low > 0 else "bad" if self.high < 0 else "soft"


@dataclass(frozen=True)
class Line:
    """One part of a score: the model's, and its base's beside it."""

    label: str
    tuned: Bar | None
    base: Bar | None
    change: Change | None
    headline: bool = False


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
    #: What the intervals are, in a sentence, if there are any.
    method: str | None

    @property
    def headline(self) -> Line | None:
        """The score itself."""
        return next((line for line in self.lines if line.headline), None)


def criteria_of(scores: Mapping[str, Any] | None) -> list[Criterion]:
    """The figures of ``scores.json``; none before the run has completed."""
    method = _method((scores or {}).get("bootstrap"))
    return [_criterion(entry, method) for entry in (scores or {}).get("criteria", [])]


def _criterion(entry: Mapping[str, Any], method: str | None) -> Criterion:
    tuned, base = entry.get("model") or {}, entry.get("base") or {}
    score = next((name for name in ("codebleu", "score", "mean") if name in tuned), "codebleu")
    lines = [_line(entry, score, _title(entry, score), headline=True)]
    lines += [_line(entry, name, title) for name, title in PARTS.items() if name in tuned]
    counts = [(title, tuned.get(name), base.get(name)) for name, title in COUNTS.items() if name in tuned]
    return Criterion(
        name=str(entry.get("name", "")),
        kind=str(entry.get("type", "")),
        metric=str(entry.get("metric") or ""),
        threshold=entry.get("pass_threshold"),
        lines=[line for line in lines if line.tuned is not None],
        counts=counts,
        verdict=str((entry.get("verdict") or {}).get("sentence") or "").replace(" %", NO_BREAK + "%") or None,
        method=method if any(line.tuned and line.tuned.low is not None for line in lines) else None,
    )


def _method(how: Mapping[str, Any] | None) -> str | None:
    if not how:
        return None
    share = percent(how["confidence"])
    return (
        f"Lines and ranges are {share} intervals: {how['resamples']:,} draws of the items, "
        f"seed {how['seed']}. A change is taken item by item, so its interval is its own. "
        f"Fewer than {how['fewest_samples']} items have none."
    )


def _line(entry: Mapping[str, Any], name: str, title: str, *, headline: bool = False) -> Line:
    tuned, base = (_bar(entry.get(side) or {}, name) for side in ("model", "base"))
    return Line(title, tuned, base, _change(entry, name, tuned, base), headline)


def _change(entry: Mapping[str, Any], name: str, tuned: Bar | None, base: Bar | None) -> Change | None:
    if tuned is None or base is None:
        return None
    found = (entry.get("difference") or {}).get(name) or {}
    if not isinstance(found.get("mean"), int | float):
        return Change(tuned.value - base.value, None, None)
    return Change(float(found["mean"]), *_ends(found.get("interval")))


def _title(entry: Mapping[str, Any], score: str) -> str:
    return "CodeBLEU" if score == "codebleu" else str(entry.get("type", "score")).replace("_", " ")


def _bar(side: Mapping[str, Any], name: str) -> Bar | None:
    value = side.get(name)
    if not isinstance(value, int | float):
        return None
    return Bar(float(value), *_ends((side.get("intervals") or {}).get(name)))


def _ends(found: Any) -> tuple[float | None, float | None]:
    if isinstance(found, list | tuple) and len(found) == 2:
        return float(found[0]), float(found[1])
    return None, None
