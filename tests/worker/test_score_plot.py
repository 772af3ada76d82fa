from pathlib import Path

import matplotlib.image
import pytest

from worker.score_plot import plot_scores

NAMES = ("codebleu", "ngram", "weighted_ngram", "syntax", "dataflow")
LOW = dict.fromkeys(NAMES, 0.1) | {"passed": 1}
HIGH = dict.fromkeys(NAMES, 1.0) | {"passed": 9}
NOTHING = dict.fromkeys(NAMES, 0.0) | {"passed": 0, "dataflow": None}


def report(*criteria: tuple[str, dict, dict | None], model: str = "ft:tiny:hone::1") -> dict:
    rows = [{"name": name, "model": model_corpus, "base": base} for name, model_corpus, base in criteria]
    return {"model": model, "base_model": "tiny", "samples": 10, "criteria": rows}


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (report(("codebleu", HIGH, LOW)), 1),
        (report(("codebleu", LOW, None), model="tiny"), 1),
        (report(("nothing", NOTHING, NOTHING)), 1),
        (report(("$x^$ {{\n_", HIGH, LOW), ("_" * 256, LOW, NOTHING)), 2),
        (report(*[("many", LOW, None)] * 200), 10),
    ],
)
def test_every_report_makes_a_picture(tmp_path: Path, content, rows):
    path = tmp_path / "codebleu.png"
    plot_scores(content, path)
    height, width, _ = matplotlib.image.imread(path).shape
    assert (width, height) == (1152, 648 * rows)


def test_bars_rise_with_the_score(tmp_path: Path):
    def blue(corpus: dict) -> int:
        path = tmp_path / "codebleu.png"
        plot_scores(report(("c", corpus, LOW | {"syntax": 1.0})), path)
        pixels = matplotlib.image.imread(path)
        return int(((pixels[..., 2] > 0.6) & (pixels[..., 0] < 0.1)).sum())

    assert blue(HIGH) > 5 * blue(LOW) > 0
