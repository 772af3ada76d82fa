"""The picture of an evaluation: each criterion's scores with their intervals, the base beside the fine-tuned model."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

# Light grey beside Okabe and Ito's blue: far apart for colour-blind readers and on a grey print.
_LIGHT, _BLUE, _INK, _FAINT = "#c4c4c4", "#0072b2", "#333333", "#777777"
_CODE_BARS = (
    ("codebleu", "CodeBLEU"),
    ("ngram", "n-gram"),
    ("weighted_ngram", "weighted\nn-gram"),
    ("syntax", "syntax"),
    ("dataflow", "dataflow"),
)
_WIDTH = 0.36
#: A picture of 100 rows would have more pixels than matplotlib draws; 10 are more than anyone looks at.
_MOST_ROWS = 10


@dataclass(frozen=True)
class _Series:
    """One model's figures."""

    figures: dict[str, Any]
    label: str
    colour: str


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
    bars = _CODE_BARS if "codebleu" in criterion["model"] else (("score", _plain(criterion["metric"])),)
    series = _series(criterion, report)
    tops = [
        _bars(axes, one, [name for name, _ in bars], (place - (len(series) - 1) / 2) * _WIDTH)
        for place, one in enumerate(series)
    ]
    axes.set_ylim(0, max(0.1, 1.14 * max(map(max, tops))))
    axes.set_yticks([tick for tick in axes.get_yticks() if tick <= 1.0001])
    axes.set_xlim(-0.6, len(_CODE_BARS) - 0.4)
    axes.set_xticks(range(len(bars)), [label for _, label in bars], fontsize=10)
    if len(bars) > 1:
        axes.get_xticklabels()[0].set_fontweight("bold")
        axes.axvline(0.5, color=_LIGHT, linewidth=0.8)  # the headline apart from what it is made of
    axes.set_axisbelow(True)
    axes.grid(axis="y", color="#eeeeee", linewidth=0.8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="both", length=0)
    axes.tick_params(axis="y", colors=_FAINT, labelsize=9)
    _headings(axes, criterion, report, series)


def _series(criterion: dict[str, Any], report: dict[str, Any]) -> list[_Series]:
    base = f"base: {_plain(report['base_model'])}"
    if not report["model"]:
        return [_Series(criterion["model"], "the items' own answers", _BLUE)]
    if report["model"] == report["base_model"]:
        return [_Series(criterion["model"], base, _LIGHT)]
    series = [_Series(criterion["model"], f"fine-tuned: {_plain(report['model'])}", _BLUE)]
    if criterion["base"] is not None:
        series.insert(0, _Series(criterion["base"], base, _LIGHT))
    return series


def _bars(axes: Axes, one: _Series, names: Sequence[str], shift: float) -> list[float]:
    """Draw a model's bars with whiskers and figures; returns how high each reaches."""
    tops = []
    for place, name in enumerate(names):
        value, interval = one.figures[name], one.figures["intervals"][name]
        x, top = place + shift, value or 0.0
        label = one.label if place == 0 else None
        axes.bar(x, top, _WIDTH * 0.94, label=label, color=one.colour)
        if interval is not None:
            axes.plot([x, x], interval, color=_INK, linewidth=1.1, solid_capstyle="butt")
            axes.plot([x, x], interval, linestyle="", marker="_", markersize=6, color=_INK, markeredgewidth=1.1)
            top = max(top, interval[1])
        text = "none" if value is None else f"{value:.3f}"
        axes.annotate(text, (x, top), (0, 3), textcoords="offset points", ha="center", fontsize=9, color=_INK)
        tops.append(top)
    return tops


def _headings(axes: Axes, criterion: dict[str, Any], report: dict[str, Any], series: Sequence[_Series]) -> None:
    """Above the bars: what was measured, what came of it, and whose bars these are."""
    samples = f"{report['samples']:,} {'answer' if report['samples'] == 1 else 'answers'}"
    passed = " → ".join(str(one.figures["passed"]) for one in series)
    has_interval = any(entry for one in series for entry in one.figures["intervals"].values())
    whiskers = "; whiskers: 95 % intervals" if has_interval else ""
    verdict = criterion["verdict"]["sentence"] if criterion["verdict"] else ""
    lines = [f"mean over {samples}, {passed} passed{whiskers}", *textwrap.wrap(_plain(verdict, 400), 105)]
    axes.set_title(_plain(criterion["name"]), loc="left", fontsize=12, fontweight="bold", pad=34 + 13 * len(lines))
    axes.annotate(
        "\n".join(lines), (0, 1), (0, 26), xycoords="axes fraction", textcoords="offset points", fontsize=9,
        color=_FAINT, va="bottom", linespacing=1.35,
    )  # fmt: skip
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.012, 1.0), frameon=False, fontsize=9, borderaxespad=0.3,
        ncols=len(series), handlelength=1.0, handleheight=1.0, columnspacing=1.6,
    )  # fmt: skip


def _plain(text: str, most: int = 60) -> str:
    """A text as one short line, its dollar signs being no formula's."""
    return " ".join(text[:most].split()).replace("$", r"\$")
