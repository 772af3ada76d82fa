from pathlib import Path

import matplotlib.image
import pytest

from worker.score_plot import plot_scores

NAMES = ("codebleu", "ngram", "weighted_ngram", "syntax", "dataflow")
LOW = dict.fromkeys(NAMES, 0.1) | {"passed": 1, "intervals": dict.fromkeys(NAMES, (0.05, 0.15))}
HIGH = dict.fromkeys(NAMES, 1.0) | {"passed": 9, "intervals": dict.fromkeys(NAMES, (1.0, 1.0))}
NOTHING = dict.fromkeys(NAMES, 0.0) | {"passed": 0, "dataflow": None, "intervals": dict.fromkeys(NAMES)}
TEXT = {"score": 0.4, "passed": 2, "intervals": {"score": (0.3, 0.5)}}
VERDICT = {"outcome": "better", "sentence": "Better: +0.9 $CodeBLEU$ " + 12 * "and so on, "}


def report(*criteria: tuple[str, dict, dict | None], model: str = "ft:tiny:hone::1") -> dict:
    rows = [
        {"name": name, "metric": "m 1.0", "model": figures, "base": base, "verdict": base and VERDICT}
        for name, figures, base in criteria
    ]
    return {"model": model, "base_model": "tiny", "samples": 10, "criteria": rows}


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (report(("codebleu", HIGH, LOW)), 1),
        (report(("codebleu", LOW, None), model="tiny"), 1),
        (report(("nothing", NOTHING, NOTHING)), 1),
        (report(("text", TEXT, TEXT), ("codebleu", HIGH, LOW)), 2),
        (report(("given", TEXT, None), model=""), 1),
        (report(("$x^$ {{\n_", HIGH, LOW), ("_" * 256, LOW, NOTHING)), 2),
        (report(*[("many", LOW, None)] * 200), 10),
    ],
)
def test_every_report_makes_a_picture(tmp_path: Path, content, rows):
    path = tmp_path / "codebleu.png"
    plot_scores(content, path)
    height, width, _ = matplotlib.image.imread(path).shape
    assert (width, height) == (1152, 648 * rows)


def test_a_whisker_shows_how_sure_a_score_is(tmp_path: Path):
    def dark(interval: tuple[float, float] | None) -> int:
        path = tmp_path / "codebleu.png"
        figures = TEXT | {"intervals": {"score": interval}}
        # The other series' whisker keeps the axis the same.
        plot_scores(report(("c", figures, TEXT | {"intervals": {"score": (0.1, 0.9)}})), path)
        pixels = matplotlib.image.imread(path)[250:600, 150:300]
        return int((pixels[..., :3].max(axis=-1) < 0.3).sum())

    assert dark((0.1, 0.9)) > dark((0.35, 0.45)) > dark(None)


def test_bars_rise_with_the_score(tmp_path: Path):
    def blue(corpus: dict) -> int:
        path = tmp_path / "codebleu.png"
        plot_scores(report(("c", corpus, HIGH)), path)
        pixels = matplotlib.image.imread(path)
        return int(((pixels[..., 2] > 0.6) & (pixels[..., 0] < 0.1)).sum())

    assert blue(HIGH) > 5 * blue(LOW) > 0
