"""Intervals against what is known in closed form, and verdicts that say no more than the interval shows."""

import random
from statistics import fmean

import pytest

from worker.statistics import FEWEST, Difference, differences, intervals, judge_difference


def test_an_interval_is_that_of_the_normal_approximation():
    drawn = random.Random(3)
    values = [drawn.gauss(0.5, 0.1) for _ in range(2000)]
    low, high = intervals({"x": values})["x"]
    half = 1.96 * 0.1 / 2000**0.5
    assert low == pytest.approx(fmean(values) - half, abs=half / 8)
    assert high == pytest.approx(fmean(values) + half, abs=half / 8)


def test_of_a_hundred_intervals_some_95_hold_the_true_mean():
    drawn = random.Random(5)
    held = 0
    for _ in range(100):
        low, high = intervals({"x": [float(drawn.random() < 0.3) for _ in range(120)]})["x"]
        held += low <= 0.3 <= high
    assert 88 <= held <= 99


def test_the_same_scores_have_the_same_interval_whatever_stands_beside_them():
    drawn = random.Random(1)
    one, other = ([drawn.random() for _ in range(50)] for _ in range(2))
    assert intervals({"a": one}) == intervals({"a": one})
    assert intervals({"a": one, "b": other})["a"] == pytest.approx(intervals({"a": one})["a"], abs=1e-12)


def test_a_sample_without_a_value_does_not_count_and_too_few_have_no_interval():
    values: list[float | None] = [0.25, 0.75] * FEWEST
    with_gaps = [value for pair in zip(values, [None] * len(values), strict=True) for value in pair]
    low, high = intervals({"x": with_gaps})["x"]
    assert 0.25 < low < 0.5 < high < 0.75
    assert intervals({"x": [0.5] * (FEWEST - 1) + [None] * 50}) == {"x": None}
    assert intervals({"x": [None] * 20}) == {"x": None}
    assert intervals({"x": []}) == {"x": None}


def test_a_paired_difference_is_narrower_than_two_unpaired_intervals():
    drawn = random.Random(7)
    hard = [drawn.random() for _ in range(60)]
    base = {"codebleu": [0.8 * value for value in hard]}
    model = {"codebleu": [0.8 * value + 0.05 + 0.02 * drawn.random() for value in hard]}
    found = differences(model, base)["codebleu"]
    assert found.samples == 60
    low, high = found.interval
    assert 0.05 < low < found.mean < high < 0.07
    alone = intervals(base)["codebleu"]
    assert high - low < (alone[1] - alone[0]) / 10


@pytest.mark.parametrize(
    ("found", "outcome", "sentence"),
    [
        (Difference(0.2, (0.1, 0.3), 24), "better",
         "Better: +0.200 CodeBLEU against its base (95 % interval +0.100 to +0.300, 24 samples)."),
        (Difference(-0.2, (-0.3, -0.1), 24), "worse",
         "Worse: -0.200 CodeBLEU against its base (95 % interval -0.300 to -0.100, 24 samples)."),
        (Difference(0.01, (-0.02, 0.04), 24), "no difference shown",
         "No difference shown: +0.010 CodeBLEU against its base (95 % interval -0.020 to +0.040, 24 samples)."),
        (Difference(0.0, (0.0, 0.0), 24), "no difference shown",
         "No difference shown: +0.000 CodeBLEU against its base (95 % interval +0.000 to +0.000, 24 samples)."),
        (Difference(0.5, None, 1), "no difference shown",
         "No difference shown: +0.500 CodeBLEU over 1 sample, too few for an interval (10 are needed)."),
        (Difference(None, None, 0), "no difference shown",
         "No difference shown: no sample has a CodeBLEU of both models."),
    ],
)  # fmt: skip
def test_the_verdict_says_what_the_interval_shows(found, outcome, sentence):
    verdict = judge_difference(found, "CodeBLEU")
    assert (verdict.outcome, verdict.sentence) == (outcome, sentence)


def test_no_model_seems_better_by_chance_more_often_than_the_interval_allows():
    """Two models that are equally good: one run in twenty or so may be fooled, not more."""
    drawn = random.Random(11)
    fooled = 0
    for _ in range(100):
        base = {"x": [drawn.random() for _ in range(40)]}
        found = differences({"x": [drawn.random() for _ in range(40)]}, base)["x"]
        fooled += judge_difference(found, "x").outcome != "no difference shown"
    assert fooled <= 11
