"""The two n-gram parts: BLEU up to 4-grams (Papineni 2002), and BLEU whose unigrams are weighed by being keywords.

Words are what white space separates, as in the reference implementation of the paper. Where no n-gram of an order is
matched, 0.1 matches are counted (method 1 of Chen and Cherry 2014), as there.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import count as counting

ORDERS = 4
#: Weight of a word that is no keyword; a keyword's is 1 (section 3.1 of the paper: five times).
PLAIN_WEIGHT = 0.2
#: Matches that an order without any is given.
_EPSILON = 0.1


@dataclass(slots=True)
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
    matched = [math.fsum(column) for column in zip(*[sample.matched for sample in samples], strict=True)][:orders]
    total = [math.fsum(column) for column in zip(*[sample.total for sample in samples], strict=True)][:orders]
    if not length or not matched[0]:
        return 0.0
    logs = (math.log((hit or _EPSILON) / count) for hit, count in zip(matched, total, strict=True))
    brevity = 1.0 if length > wanted else math.exp(1 - wanted / length)
    return brevity * math.exp(math.fsum(logs) / orders)


class Words:
    """Numbers of words, and n-grams as numbers: quicker to count than tuples of words, and the same for equal ones."""

    def __init__(self, keywords: Set[str], *texts: Sequence[str]) -> None:
        numbers: defaultdict[str, int] = defaultdict(counting().__next__)
        self._texts = [list(map(numbers.__getitem__, text)) for text in texts]
        self._base = len(numbers)
        #: Of each word, by its number, whether it is a keyword.
        self.marked = list(map(keywords.__contains__, numbers))

    def grams(self, text: int) -> list[list[int]]:
        """The n-grams of a text, for n = 1 to 4."""
        words, base = self._texts[text], self._base
        found = [words]
        for n in range(1, ORDERS):
            found.append([gram * base + word for gram, word in zip(found[-1], words[n:], strict=False)])
        return found


def _common(ours: list[int], theirs: list[int]) -> dict[int, int]:
    """The n-grams of both, each as often as in the one that has it less often."""
    have, most = Counter(ours), Counter(theirs)
    return {gram: have[gram] if have[gram] < most[gram] else most[gram] for gram in have.keys() & most.keys()}


def _matches(ours: list[int], theirs: list[int]) -> int:
    """How many n-grams they have in common, each counted as often as in the one that has it less often."""
    one, other = set(ours), set(theirs)
    once = len(one & other)
    if len(one) == len(ours) or len(other) == len(theirs):  # no n-gram twice: often so from three words on
        return once
    again, most = _again(ours), _again(theirs)
    return once + sum([min(number, most[gram]) for gram, number in again.items() if gram in most])


def _again(grams: list[int]) -> Counter[int]:
    """How often each n-gram is there after its first time."""
    seen: set[int] = set()
    add = seen.add
    return Counter([gram for gram in grams if gram in seen or add(gram)])


def _weigh(words: Sequence[int], marked: Sequence[bool]) -> float:
    """The sum of words' weights."""
    return _weight(sum(map(marked.__getitem__, words)), len(words))


def _weigh_counted(counts: Mapping[int, int], marked: Sequence[bool]) -> float:
    """The same of words that are counted."""
    return _weight(sum([count for word, count in counts.items() if marked[word]]), sum(counts.values()))


def _weight(keywords: int, words: int) -> float:
    """The weight of so many keywords among so many words; whole numbers first, so that no order matters."""
    return keywords + PLAIN_WEIGHT * (words - keywords)


def compare(candidate: Sequence[str], reference: Sequence[str], keywords: Set[str]) -> tuple[Matches, Matches]:
    """The plain and the weighted counts of a candidate against one reference."""
    words = Words(keywords, candidate, reference)
    got, want = words.grams(0), words.grams(1)
    first = _common(got[0], want[0])
    matched = [sum(first.values()), *(_matches(got[n], want[n]) for n in range(1, ORDERS))]
    total = [max(1, len(candidate) - n) for n in range(ORDERS)]
    orders = min(ORDERS, max(1, len(candidate), len(reference)))
    lengths = len(candidate), len(reference)
    plain = Matches(tuple(matched), tuple(total), *lengths, orders)
    weight, of = _weigh_counted(first, words.marked), _weigh(got[0], words.marked)
    return plain, Matches((weight, *matched[1:]), (of or 1.0, *total[1:]), *lengths, orders)


def compare_as_package(
    candidate: Sequence[str], references: Sequence[Sequence[str]], keywords: Set[str]
) -> tuple[Matches, Matches]:
    """The two counts as the package ``codebleu`` 0.7.0 makes them, of a candidate against several references.

    Its weighted part is a recall: it divides by the reference's n-grams. And it takes each reference for one of two
    words when it looks for the one whose length is closest, so that no candidate of three words or more is too short.
    """
    words = Words(keywords, candidate, *references)
    got, wants = words.grams(0), [words.grams(number) for number in range(1, len(references) + 1)]
    matched, recalled, to_recall = [], [], []
    for n in range(ORDERS):
        if len(wants) == 1 and n:
            matched.append(_matches(got[n], wants[0][n]))
            recalled.append(float(matched[-1]))
        else:
            commons = [_common(got[n], want[n]) for want in wants]
            matched.append(_most(commons))
            weights = [_weigh_counted(common, words.marked) for common in commons] if not n else None
            recalled.append(math.fsum(weights or (sum(common.values()) for common in commons)))
        to_recall.append(float(sum(max(1, len(want[n])) for want in wants)))
    to_recall[0] = math.fsum(max(1.0, _weigh(want[0], words.marked)) for want in wants)
    total = tuple(max(1, len(candidate) - n) for n in range(ORDERS))
    closest = min((abs(len(reference) - len(candidate)), len(reference)) for reference in references)[1]
    plain = Matches(tuple(matched), total, len(candidate), closest)
    return plain, Matches(tuple(recalled), tuple(to_recall), len(candidate), 2)


def _most(commons: Sequence[dict[int, int]]) -> int:
    """How many n-grams are matched when each counts as often as in the reference that has it most often."""
    best: dict[int, int] = {}
    for common in commons:
        for gram, count in common.items():
            best[gram] = max(count, best.get(gram, 0))
    return sum(best.values())
