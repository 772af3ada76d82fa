"""The two n-gram parts: BLEU up to 4-grams (Papineni 2002), and BLEU whose unigrams are weighed by being keywords.

Words are what white space separates, as in the reference implementation of the paper. Where no n-gram of an order is
matched, 0.1 matches are counted (method 1 of Chen and Cherry 2014), as there.
"""

import math
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass

ORDERS = 4
#: Weight of a word that is no keyword; a keyword's is 1 (section 3.1 of the paper: five times).
PLAIN_WEIGHT = 0.2
#: Matches that an order without any is given.
_EPSILON = 0.1


@dataclass(frozen=True, slots=True)
class Matches:
    """Counts of one sample for one of the two parts; those of a corpus are their sums."""

    #: For n = 1 to 4: n-grams that match, and n-grams that there are. Weighed for n = 1 in the weighted part.
    matched: tuple[float, ...]
    total: tuple[float, ...]
    #: Words of the candidate, and of the reference that the candidate is held to be as long as.
    length: int
    wanted: int
    #: The last order that one of the two texts is long enough for.
    orders: int = ORDERS


def bleu(samples: Sequence[Matches]) -> float:
    """BLEU of samples as one corpus, 0 to 1: counts are added up first."""
    length = sum(sample.length for sample in samples)
    wanted = sum(sample.wanted for sample in samples)
    orders = max(sample.orders for sample in samples)
    matched = [math.fsum(sample.matched[n] for sample in samples) for n in range(orders)]
    total = [math.fsum(sample.total[n] for sample in samples) for n in range(orders)]
    if not length or not matched[0]:
        return 0.0
    logs = (math.log((hit or _EPSILON) / count) for hit, count in zip(matched, total, strict=True))
    brevity = 1.0 if length > wanted else math.exp(1 - wanted / length)
    return brevity * math.exp(math.fsum(logs) / orders)


def grams(words: Sequence[str]) -> list[Counter[tuple[str, ...]]]:
    """How often each n-gram appears, for n = 1 to 4."""
    return [Counter(zip(*(words[start:] for start in range(n)), strict=False)) for n in range(1, ORDERS + 1)]


def compare(candidate: Sequence[str], reference: Sequence[str], keywords: Set[str]) -> tuple[Matches, Matches]:
    """The plain and the weighted counts of a candidate against one reference."""
    got, want = grams(candidate), grams(reference)
    common = [_common(ours, theirs) for ours, theirs in zip(got, want, strict=True)]
    matched = [float(sum(entry.values())) for entry in common]
    total = [float(max(1, len(candidate) - n)) for n in range(ORDERS)]
    orders = min(ORDERS, max(1, len(candidate), len(reference)))
    lengths = len(candidate), len(reference)
    plain = Matches(tuple(matched), tuple(total), *lengths, orders)
    first, of = weigh(common[0], keywords), weigh(got[0], keywords)
    weighted = Matches((first, *matched[1:]), (of or 1.0, *total[1:]), *lengths, orders)
    return plain, weighted


def _common(ours: Counter[tuple[str, ...]], theirs: Counter[tuple[str, ...]]) -> dict[tuple[str, ...], int]:
    """The n-grams of both, each as often as in the one that has it less often."""
    get = theirs.get
    return {gram: min(count, most) for gram, count in ours.items() if (most := get(gram))}


def weigh(counts: "dict[tuple[str, ...], int]", keywords: Set[str]) -> float:
    """The sum of unigrams' weights. Exactly rounded, so that it does not depend on their order."""
    marked = sum(count for (word,), count in counts.items() if word in keywords)
    return marked + PLAIN_WEIGHT * (sum(counts.values()) - marked)


def compare_as_package(
    candidate: Sequence[str], references: Sequence[Sequence[str]], keywords: Set[str]
) -> tuple[Matches, Matches]:
    """The two counts as the package ``codebleu`` 0.7.0 makes them, of a candidate against several references.

    Its weighted part is a recall: it divides by the reference's n-grams. And it takes each reference for one of two
    words when it looks for the one whose length is closest, so that no candidate of three words or more is too short.
    """
    got, wants = grams(candidate), [grams(reference) for reference in references]
    matched, recalled, to_recall = [], [], []
    for n in range(ORDERS):
        commons = [_common(got[n], want[n]) for want in wants]
        best: Counter[tuple[str, ...]] = Counter()
        for common in commons:
            best |= Counter(common)
        matched.append(float(best.total()))
        if n:
            recalled.append(float(sum(sum(common.values()) for common in commons)))
            to_recall.append(float(sum(max(1, want[n].total()) for want in wants)))
        else:
            recalled.append(math.fsum(weigh(common, keywords) for common in commons))
            to_recall.append(math.fsum(max(1.0, weigh(want[0], keywords)) for want in wants))
    total = tuple(float(max(1, len(candidate) - n)) for n in range(ORDERS))
    closest = min((abs(len(reference) - len(candidate)), len(reference)) for reference in references)[1]
    plain = Matches(tuple(matched), total, len(candidate), closest)
    return plain, Matches(tuple(recalled), tuple(to_recall), len(candidate), 2)
