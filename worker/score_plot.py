"""The picture of an evaluation: CodeBLEU and its four parts, the base beside the fine-tuned model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

# Light grey beside Okabe and Ito's blue: far apart for colour-blind readers and on a grey print.
_LIGHT, _BLUE = "#c4c4c4", "#0072b2"
_BARS = (
    ("codebleu", "CodeBLEU"),
    ("ngram", "n-gram"),
    ("weighted_ngram", "weighted\nn-gram"),
    ("syntax", "syntax"),
    ("dataflow", "dataflow"),
)
_WIDTH = 0.38
#: A picture of 100 rows would have more pixels than matplotlib draws; 10 are more than anyone looks at.
_MOST_ROWS = 10


def plot_scores(report: dict[str, Any], path: Path) -> None:
    """Write a PNG of ``report`` (scores.json's content), a row of bars for each of the first 10 criteria."""
    criteria = report["criteria"][:_MOST_ROWS]
    figure, rows = plt.subplots(
        len(criteria), 1, figsize=(8, 4.5 * len(criteria)), dpi=144, squeeze=False, layout="constrained"
    )
    for axes, criterion in zip(rows[:, 0], criteria, strict=True):
        _plot_criterion(axes, criterion, report)
    figure.savefig(path)
    plt.close(figure)


def _plot_criterion(axes: Axes, criterion: dict[str, Any], report: dict[str, Any]) -> None:
    base = f"base: {_plain(report['base_model'])}"
    series = [(criterion["model"], f"fine-tuned: {_plain(report['model'])}", _BLUE)]
    if report["model"] == report["base_model"]:
        series = [(criterion["model"], base, _LIGHT)]
    elif criterion["base"] is not None:
        series.insert(0, (criterion["base"], base, _LIGHT))
    for place, (corpus, label, colour) in enumerate(series):
        _bars(axes, [corpus[name] for name, _ in _BARS], (place - (len(series) - 1) / 2) * _WIDTH, label, colour)
    most = max([corpus[name] or 0.0 for corpus, _, _ in series for name, _ in _BARS])
    axes.set_ylim(0, min(1.12, max(0.1, 1.18 * most)))
    axes.set_xticks(range(len(_BARS)), [label for _, label in _BARS])
    axes.axvline(0.5, color="#999999", linewidth=0.8)  # the headline apart from what it is made of
    axes.set_ylabel("score, mean over answers")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="x", length=0)
    samples = f"{report['samples']:,} {'answer' if report['samples'] == 1 else 'answers'}"
    axes.set_xlim(-0.6, len(_BARS) - 0.4)
    title = f"{_plain(criterion['name'])}: {samples}, {_outcomes(series)}"
    axes.set_title(title, loc="left", fontsize=11, pad=8 + 16 * len(series))
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1), frameon=False, fontsize=9, borderaxespad=0.2)


def _plain(text: str) -> str:
    """A name as one short line, its dollar signs being no formula's."""
    return " ".join(text[:60].split()).replace("$", r"\$")


def _bars(axes: Axes, values: Sequence[float | None], shift: float, label: str, colour: str) -> None:
    places = [place + shift for place in range(len(values))]
    drawn = axes.bar(
        places,
        [value or 0.0 for value in values],
        _WIDTH,
        label=label,
        color=colour,
        edgecolor="#333333",
        linewidth=0.6,
    )
    texts = ["none" if value is None else f"{value:.3f}" for value in values]
    axes.bar_label(drawn, texts, padding=2, fontsize=8.5)


def _outcomes(series: Sequence[tuple[dict[str, Any], str, str]]) -> str:
    counts = [str(corpus["passed"]) for corpus, _, _ in series]
    return f"passed {' → '.join(counts)}"
