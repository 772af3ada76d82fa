"""One sample: an answer against its reference, or its references."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .analysis import State, reader
from .language import Loaded, load
from .limits import Limits, RefusedError
from .ngram import Matches, bleu, compare, compare_as_package

Mode = Literal["default", "compat"]
Parse = Literal["ok", "empty", "unparsable", "refused"]
Weights = tuple[float, float, float, float]

EQUAL: Weights = (0.25, 0.25, 0.25, 0.25)
LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class SampleScore:
    """One answer; scores are 0 to 1. ``parse`` tells of the answer.

    ``dataflow`` is None where the reference has none, and the other weights are scaled up. ``reason`` says why a sample
    was refused, or that the reference does not parse.
    """

    codebleu: float
    ngram: float
    weighted_ngram: float
    syntax: float
    dataflow: float | None
    parse: Parse
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Counts:
    """What the package adds up over a corpus before it divides: matches, and what could have matched."""

    plain: Matches
    weighted: Matches
    syntax: tuple[int, int]
    dataflow: tuple[int, int]


def score_sample(
    prediction: str,
    references: str | Sequence[str],
    lang: str = "python",
    weights: Weights = EQUAL,
    mode: Mode = "default",
    limits: Limits = LIMITS,
) -> SampleScore:
    """Score one answer; whatever the texts are, the result is a score or a named reason.

    Of several references the one counts that the answer scores best against. Raises UnsupportedLanguageError, and
    ValueError for weights that are no weights, for no reference, and for "compat" in another language than Python.
    """
    check_weights(weights)
    given = listed(references)
    language = load(lang)
    if mode == "compat":
        return score_of(*counts_of(prediction, given, language, limits), weights)
    found = [_against(prediction, reference, language, weights, limits) for reference in given]
    return max(found, key=lambda score: (score.parse == "ok", score.codebleu))


def listed(references: str | Sequence[str]) -> Sequence[str]:
    """The references of one sample as a list. Raises ValueError for none."""
    found = [references] if isinstance(references, str) else references
    if not found:
        raise ValueError("a sample needs a reference")
    return found


def check_weights(weights: Weights) -> None:
    """Raises ValueError for anything but four numbers of at least 0, one of them above."""
    if len(weights) != 4 or not all(weight >= 0 for weight in weights) or not 0 < sum(weights) < float("inf"):
        raise ValueError("weights must be four numbers of at least 0, and one of them more")


def _against(prediction: str, reference: str, language: Loaded, weights: Weights, limits: Limits) -> SampleScore:
    """Score an answer against one reference by our own rules."""
    texts = reader(language, limits, as_package=False)
    try:
        want = texts.reference(reference)
        if want.state == "empty":
            raise RefusedError("the reference is empty")
        got = texts.read(prediction)
    except RefusedError as error:
        return SampleScore(0.0, 0.0, 0.0, 0.0, 0.0, "refused", str(error))
    reason = "the reference does not parse" if want.state == "unparsable" else None
    if got.state != "ok":
        return SampleScore(0.0, 0.0, 0.0, 0.0, 0.0 if want.edges else None, got.state, reason)
    plain, weighted = compare(got.words, want.words, language.table.keywords)
    parts = (
        bleu([plain]),
        bleu([weighted]),
        _share(clipped(got.subtrees, want.subtrees), want.subtrees.total()),
        _share(clipped(got.edges, want.edges), want.edges.total()) if want.edges else None,
    )
    score = headline(parts, weights)
    if score is None:
        reason = "the reference has no dataflow, and no other part has weight"
        return SampleScore(0.0, 0.0, 0.0, 0.0, None, "refused", reason)
    return SampleScore(score, *parts, "ok", reason)


def headline(parts: tuple[float, float, float, float | None], weights: Weights) -> float | None:
    """The weighted mean of the parts that there are; None when none of them has weight."""
    weighed = [(weight, part) for weight, part in zip(weights, parts, strict=True) if part is not None]
    total = sum(weight for weight, _ in weighed)
    return sum(weight * part for weight, part in weighed) / total if total else None


def clipped(got: Counter[Any], want: Counter[Any]) -> int:
    """How many of the wanted things are there, each as often as it is wanted at most."""
    found = 0
    for thing in got.keys() & want.keys():
        count, most = got[thing], want[thing]
        found += count if count < most else most
    return found


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


# -- as the package counts


def counts_of(
    prediction: str, references: Sequence[str], language: Loaded, limits: Limits
) -> tuple[Counts | None, Parse, str | None]:
    """What a sample adds to the package's sums, how its answer parses, and a reason; no counts where it is refused."""
    if language.table.name != "python":
        raise ValueError(f'the mode "compat" is there for Python only, not for {language.table.name!r}')
    prediction, references = prediction.strip(), [reference.strip() for reference in references]
    syntax, flow = [0, 0], [0, 0]
    texts = reader(language, limits, as_package=True)
    state: State = "ok"
    code = prediction
    try:
        for reference in references:
            want, got = texts.reference(reference), texts.read(code)
            # From the second reference on it cuts comments and docstrings out of what it has already cut them out of.
            code, state = got.code, got.state
            syntax[0] += sum(count for subtree, count in want.subtrees.items() if subtree in got.subtrees)
            syntax[1] += want.subtrees.total()
            flow[0] += clipped(got.edges, want.edges)
            flow[1] += want.edges.total()
    except RefusedError as error:
        return None, "refused", str(error)
    words = [reference.split() for reference in references]
    plain, weighted = compare_as_package(prediction.split(), words, language.table.keywords)
    return Counts(plain, weighted, (syntax[0], syntax[1]), (flow[0], flow[1])), state, None


def as_package(counts: Sequence[Counts], weights: Weights) -> tuple[float, float, float, float, float]:
    """The package's five figures over a corpus; a dataflow of 0 counts as 1 in the first of them, as it does there."""
    syntax = [sum(entry.syntax[side] for entry in counts) for side in (0, 1)]
    flow = [sum(entry.dataflow[side] for entry in counts) for side in (0, 1)]
    parts = (
        bleu([entry.plain for entry in counts]),
        bleu([entry.weighted for entry in counts]),
        _share(*syntax),
        _share(*flow),
    )
    total = sum(weight * part for weight, part in zip(weights, (*parts[:3], parts[3] or 1.0), strict=True))
    return total, *parts


def score_of(counts: Counts | None, parse: Parse, reason: str | None, weights: Weights) -> SampleScore:
    """A sample's score by the package's figures for it alone."""
    if counts is None:
        return SampleScore(0.0, 0.0, 0.0, 0.0, 0.0, parse, reason)
    return SampleScore(*as_package([counts], weights), parse, reason)
