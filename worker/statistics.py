"""How sure a score is: bootstrap intervals of a mean, and of the difference between two models on the same items.

Percentile bootstrap (Efron, 1979): items are drawn again with replacement, 2,000 times, and the middle 95 % of the
means are the interval. For a comparison both models get the same draws, so what makes an item hard or easy falls out
of the difference. Everything is seeded: the same scores have the same intervals.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
CONFIDENCE = 0.95
SEED = 42
#: Fewer items have no interval: among five, all better, chance alone gives a sixteenth, and a bootstrap would be sure.
FEWEST = 10
#: Draws that are multiplied at once: 64 of 100,000 items take 51 MB twice.
_AT_ONCE = 64

Values = Sequence[float | None]
Interval = tuple[float, float]
Outcome = Literal["better", "worse", "no difference shown"]


@dataclass(frozen=True)
class Difference:
    """The model's mean less its base's, over items that both have a value for; None where there are none."""

    mean: float | None
    interval: Interval | None
    samples: int


@dataclass(frozen=True)
class Verdict:
    """Whether it helped, as a word and as a sentence."""

    outcome: Outcome
    sentence: str


def describe_method() -> dict[str, Any]:
    """What scores.json says of the intervals."""
    return {
        "method": "percentile bootstrap over items, paired for differences",
        "confidence": CONFIDENCE,
        "resamples": RESAMPLES,
        "seed": SEED,
        "fewest_samples": FEWEST,
    }


def intervals(columns: dict[str, Values]) -> dict[str, Interval | None]:
    """An interval of the mean of each column, a value an item; None stands for an item without one."""
    return dict(zip(columns, _intervals(list(columns.values())), strict=True))


def differences(model: dict[str, Values], base: dict[str, Values]) -> dict[str, Difference]:
    """The paired difference of each column that both have."""
    columns = {name: _subtract(model[name], base[name]) for name in model}
    found = intervals(columns)
    return {name: _difference(values, found[name]) for name, values in columns.items()}


def _subtract(model: Values, base: Values) -> Values:
    return [None if mine is None or theirs is None else mine - theirs for mine, theirs in zip(model, base, strict=True)]


def _difference(values: Values, interval: Interval | None) -> Difference:
    known = [value for value in values if value is not None]
    return Difference(float(np.mean(known)) if known else None, interval, len(known))


def _intervals(columns: list[Values]) -> list[Interval | None]:
    table = np.array([[np.nan if value is None else value for value in column] for column in columns]).T
    if not table.size:
        return [None] * len(columns)
    known = ~np.isnan(table)
    means = _resampled_means(np.where(known, table, 0.0), known.astype(float))
    edges = (100 * (1 - CONFIDENCE) / 2, 100 * (1 + CONFIDENCE) / 2)
    enough = known.sum(axis=0) >= FEWEST
    return [
        _interval(np.nanpercentile(column, edges)) if there else None
        for column, there in zip(means.T, enough, strict=True)
    ]


def _interval(edges: NDArray[np.float64]) -> Interval:
    return float(edges[0]), float(edges[1])


def _resampled_means(values: NDArray[np.float64], known: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means [draws, columns]; a draw that has no value of a column is NaN there."""
    random, items = np.random.default_rng(SEED), len(values)
    parts = []
    for start in range(0, RESAMPLES, _AT_ONCE):
        count = min(_AT_ONCE, RESAMPLES - start)
        picked = random.integers(items, size=(count, items)) + items * np.arange(count)[:, None]
        drawn = np.bincount(picked.ravel(), minlength=count * items).reshape(count, items).astype(float)
        with np.errstate(invalid="ignore"):
            parts.append((drawn @ values) / (drawn @ known))
    return np.concatenate(parts)


def judge_difference(found: Difference, measure: str) -> Verdict:
    """Whether the tuned model is better by ``measure``, such as "CodeBLEU": only if the interval leaves out 0."""
    if found.mean is None:
        return Verdict("no difference shown", f"No difference shown: no sample has a {measure} of both models.")
    told = f"{found.mean:+.3f} {measure}"
    if found.interval is None:
        return Verdict(
            "no difference shown",
            f"No difference shown: {told} over {_samples(found)}, too few for an interval ({FEWEST} are needed).",
        )
    low, high = found.interval
    outcome: Outcome = "better" if low > 0 else "worse" if high < 0 else "no difference shown"
    where = f"(95 % interval {low:+.3f} to {high:+.3f}, {_samples(found)})"
    return Verdict(outcome, f"{outcome.capitalize()}: {told} against its base {where}.")


def _samples(found: Difference) -> str:
    return f"{found.samples:,} {'sample' if found.samples == 1 else 'samples'}"


def as_json(found: dict[str, Difference]) -> dict[str, Any]:
    """Differences as scores.json holds them."""
    return {name: asdict(entry) for name, entry in found.items()}
