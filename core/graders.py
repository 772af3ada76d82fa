"""Graders that compare two texts: OpenAI's ``string_check`` and ``text_similarity``; no model, no network, no torch.

BLEU is sacrebleu's and the fuzzy match is rapidfuzz's. GLEU (arXiv 1609.08144, section 4.3) and ROUGE (Lin, 2004) are
counts of n-grams, over words in lower case; the tests hold them against nltk's and rouge-score's figures.
"""

import re
from collections import Counter
from functools import cache
from typing import Any

from core.specs import SimilarityMetric, StringOperation

#: Characters of a text. Two of them take rapidfuzz some 0.2 s.
MOST_CHARACTERS = 100_000

_WORD = re.compile(r"\w+")


def check_string(operation: StringOperation, text: str, reference: str) -> bool:
    """Whether a text equals (``eq``), differs from (``ne``) or contains (``like``, ``ilike``) its reference."""
    if operation == "eq":
        return text == reference
    if operation == "ne":
        return text != reference
    if operation == "like":
        return reference in text
    return reference.casefold() in text.casefold()


def too_long(text: str, reference: str) -> str | None:
    """Why two texts are not compared, or None."""
    for what, value in (("the text", text), ("the reference", reference)):
        if len(value) > MOST_CHARACTERS:
            return f"{what} is longer than {MOST_CHARACTERS:,} characters"
    return None


def similarity(metric: SimilarityMetric, text: str, reference: str) -> float:
    """How alike two texts are, from 0 to 1; equal texts have 1, an empty one beside one that is not has 0."""
    if text == reference:
        return 1.0
    if metric == "fuzzy_match":
        return _fuzzy(text, reference)
    if metric == "bleu":
        return _bleu(text, reference)
    words, wanted = _words(text), _words(reference)
    if metric == "gleu":
        return _gleu(words, wanted)
    if metric == "rouge_l":
        return _rouge_l(words, wanted)
    return _rouge_n(words, wanted, int(metric.removeprefix("rouge_")))


def _fuzzy(text: str, reference: str) -> float:
    from rapidfuzz import fuzz  # noqa: PLC0415 - only runs with this metric need it

    return fuzz.ratio(text, reference) / 100


@cache
def _sacrebleu() -> Any:
    from sacrebleu.metrics.bleu import BLEU  # noqa: PLC0415 - takes 0.2 s

    # Effective order: a text of three words has no 4-grams, and is not worth 0 for that.
    return BLEU(effective_order=True)


def _bleu(text: str, reference: str) -> float:
    """Sentence BLEU with sacrebleu's defaults (13a tokens, exponential smoothing) and effective order."""
    return min(1.0, float(_sacrebleu().sentence_score(text, [reference]).score) / 100)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _grams(words: list[str], size: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[start : start + size]) for start in range(len(words) - size + 1))


def _gleu(words: list[str], wanted: list[str]) -> float:
    """Matching n-grams of one to four words over the larger number of such n-grams of the two."""
    found = sum((_grams(words, size) for size in range(1, 5)), Counter())
    asked = sum((_grams(wanted, size) for size in range(1, 5)), Counter())
    most = max(found.total(), asked.total())
    return (found & asked).total() / most if most else 0.0


def _rouge_n(words: list[str], wanted: list[str], size: int) -> float:
    """F1 of matching n-grams."""
    found, asked = _grams(words, size), _grams(wanted, size)
    return _f1((found & asked).total(), found.total(), asked.total())


def _rouge_l(words: list[str], wanted: list[str]) -> float:
    """F1 of the longest common subsequence of words."""
    from rapidfuzz.distance import LCSseq  # noqa: PLC0415 - only runs with this metric need it

    return _f1(LCSseq.similarity(words, wanted), len(words), len(wanted))


def _f1(matched: int, found: int, asked: int) -> float:
    return 2 * matched / (found + asked) if matched else 0.0
