"""What holds for any text at all; a bounded run. ``fuzz.py`` has the long one."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.codebleu import LANGUAGES, score_sample

#: Words and signs of many languages, and characters that tend to hurt; split at spaces.
ALL_WORDS = (
    "def f ( ) : return if else elif for in while x y = + += , [ ] { } ' \" ''' # \\ \n \t lambda class try except "
    "None 1 0.5 . -> async await yield with as import from not is ; @ é 🙂 \r \f \0 \ud800 // /* */ $ <?php let fn end "
    "var int => == ++ & * < >"
)
WORDS = [*ALL_WORDS.split(" "), "\n    ", "\n        ", " ", "\n"]
TEXTS = st.one_of(st.text(max_size=200), st.lists(st.sampled_from(WORDS), max_size=120).map(" ".join))


def check(answer: str, reference: str, lang: str, mode: str) -> None:
    """Raises AssertionError where a result is none, or takes more than two seconds of processor time."""
    began = time.process_time()
    found = score_sample(answer, reference, lang, mode=mode)
    assert time.process_time() - began < 2
    assert found.parse in {"ok", "empty", "unparsable", "refused"}
    for part in (found.codebleu, found.ngram, found.weighted_ngram, found.syntax, found.dataflow):
        assert part is None or 0 <= part <= 1 + 1e-9
    assert (found.parse == "refused") <= bool(found.reason)
    if found.parse != "ok" and mode == "default":
        assert found.codebleu == found.ngram == found.weighted_ngram == found.syntax == 0
    if answer == reference and found.parse == "ok" and mode == "default":
        assert found.codebleu == pytest.approx(1)
    assert found == score_sample(answer, reference, lang, mode=mode)


@settings(max_examples=300, deadline=None)
@given(TEXTS, TEXTS, st.sampled_from(LANGUAGES))
def test_any_two_texts_get_a_result(answer, reference, lang):
    check(answer, reference, lang, "default")
    check(reference, reference, lang, "default")


@settings(max_examples=200, deadline=None)
@given(TEXTS, TEXTS)
def test_any_two_texts_get_a_result_as_the_package_gives_it(answer, reference):
    check(answer, reference, "python", "compat")
