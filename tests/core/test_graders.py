"""Graders of texts. The figures in the table are nltk 3.10.4's (GLEU), rouge-score 0.1.2's and sacrebleu 2.6.0's."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.graders import MOST_CHARACTERS, check_string, similarity, too_long
from core.specs import SimilarityMetric

FOX = "The quick brown fox jumps over the lazy dog"
DOG = "A quick brown dog jumps over the lazy fox again"
METRICS = get_args(SimilarityMetric)


@pytest.mark.parametrize(
    ("operation", "text", "reference", "passed"),
    [
        ("eq", "a", "a", True),
        ("eq", "a ", "a", False),
        ("ne", "a", "b", True),
        ("ne", "a", "a", False),
        ("like", "the answer is 42", "42", True),
        ("like", "Answer", "answer", False),
        ("like", "anything", "", True),
        ("ilike", "The ANSWER", "answer", True),
        ("ilike", "Straße", "STRASSE", True),
        ("ilike", "no", "answer", False),
    ],
)
def test_strings_are_checked(operation, text, reference, passed):
    assert check_string(operation, text, reference) is passed


@pytest.mark.parametrize(
    ("metric", "score"),
    [
        ("rouge_1", 0.8421052631578948),
        ("rouge_2", 0.47058823529411764),
        ("rouge_3", 0.26666666666666666),
        ("rouge_4", 0.15384615384615383),
        ("rouge_5", 0.0),
        ("rouge_l", 0.631578947368421),
        ("gleu", 0.4411764705882353),
        ("bleu", 0.3413065354365521),
        ("fuzzy_match", 0.8222222222222222),
    ],
)
def test_a_score_is_that_of_the_known_implementation(metric, score):
    assert similarity(metric, FOX, DOG) == pytest.approx(score, abs=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_equal_texts_have_one_and_nothing_has_none(metric):
    for text in ("x = 1", FOX, "", "你好"):
        assert similarity(metric, text, text) == 1
    assert similarity(metric, "", FOX) == 0
    assert similarity(metric, FOX, "") == 0
    assert similarity(metric, "alpha beta", "17 18 19") < 0.2


@given(st.sampled_from(METRICS), st.text(max_size=60), st.text(max_size=60))
def test_any_two_texts_have_a_score_from_0_to_1(metric, text, reference):
    assert 0 <= similarity(metric, text, reference) <= 1


def test_texts_that_would_take_long_are_not_compared():
    long = "x" * (MOST_CHARACTERS + 1)
    assert too_long(long, "x") == "the text is longer than 100,000 characters"
    assert too_long("x", long) == "the reference is longer than 100,000 characters"
    assert too_long(long[1:], "x") is None
