"""Pictures of a fine-tune: the loss over its steps, and the lengths of its samples."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

# Okabe and Ito's colours, told apart by colour-blind readers and in grey.
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#666666"


def new_axes(title: str, x_label: str, y_label: str) -> Axes:
    """One plain plot of 8 by 4.5 inches."""
    axes: Axes = plt.figure(figsize=(8, 4.5), layout="constrained").subplots()
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    return axes


def save(axes: Axes, path: Path) -> None:
    """Write a plot as PNG and forget it."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.savefig(path, dpi=144)
    plt.close(figure)


def plot_loss(history: Mapping[int, Mapping[str, float]], path: Path, *, title: str) -> None:
    """Training and validation loss over optimizer steps; step 0 is the base model."""
    axes = new_axes(title, "optimizer step", "loss (nats a token)")
    for name, label, colour, marker in (
        ("train_loss", "training", BLUE, ""),
        ("valid_loss", "validation", ORANGE, "o"),
    ):
        points = [(step, row[name]) for step, row in sorted(history.items()) if name in row]
        if not points:
            continue
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, color=colour, marker=marker, markersize=4, linewidth=1.6, label=label)
        axes.annotate(f"{values[-1]:.3f}", (steps[-1], values[-1]), (4, 4), textcoords="offset points", color=colour)
    axes.set_xlim(left=0)
    axes.legend(frameon=False)
    save(axes, path)


def plot_codebleu(history: Mapping[int, Mapping[str, float]], path: Path, *, title: str) -> None:
    """CodeBLEU of answers to validation prompts over optimizer steps; step 0 is the base model."""
    axes = new_axes(title, "optimizer step", "CodeBLEU")
    steps, values = zip(
        *((step, row["codebleu"]) for step, row in sorted(history.items()) if "codebleu" in row), strict=True
    )
    axes.plot(steps, values, color=BLUE, marker="o", markersize=4, linewidth=1.6)
    axes.annotate(f"{values[-1]:.3f}", (steps[-1], values[-1]), (4, 4), textcoords="offset points", color=BLUE)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    save(axes, path)


def plot_lengths(lengths: Sequence[int], max_seq_length: int, path: Path) -> None:
    """Histogram of sequence lengths with the cut; the last bin holds everything beyond twice the cut."""
    cut = int(np.count_nonzero(np.array(lengths) > max_seq_length))
    shown = np.minimum(lengths, 2 * max_seq_length)
    share = 100 * cut / len(lengths)
    axes = new_axes(
        f"{len(lengths):,} samples; {cut:,} ({share:.1f} %) longer than {max_seq_length} tokens", "tokens", "samples"
    )
    axes.hist(shown, bins=min(60, max(10, len(lengths) // 10)), color=BLUE, alpha=0.85)
    axes.axvline(max_seq_length, color=ORANGE, linewidth=1.6)
    axes.annotate(
        f"cut at {max_seq_length}",
        (max_seq_length, 0.95),
        (6, 0),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        color=ORANGE,
        va="top",
    )
    if max(lengths) > 2 * max_seq_length:
        axes.annotate(
            f"longest {max(lengths):,}", (1, 0.5), xycoords="axes fraction", ha="right", color=GREY, fontsize=9
        )
    save(axes, path)
