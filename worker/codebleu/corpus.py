"""A corpus: many answers, each against its reference, in one process or several."""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from statistics import fmean

from .language import load
from .limits import Limits
from .sample import (
    EQUAL,
    LIMITS,
    Counts,
    Mode,
    Parse,
    SampleScore,
    Weights,
    as_package,
    check_weights,
    counts_of,
    listed,
    score_of,
    score_sample,
)

#: The metric's name and version, which every result carries. The version changes when any score may.
METRIC = "hone codebleu 1"
METRIC_COMPAT = "hone codebleu 1 (as codebleu 0.7.0)"


@dataclass(frozen=True, slots=True)
class CorpusScore:
    """The scores of a corpus, 0 to 1.

    By default each is the mean over all samples; ``dataflow`` over those whose reference has one, None where none has.
    In the mode "compat" they are the package's: matches are added up over the samples that were not refused.
    """

    codebleu: float
    ngram: float
    weighted_ngram: float
    syntax: float
    dataflow: float | None
    #: How many samples there are, and how many of them parse as "ok", "empty", "unparsable" and "refused".
    samples: int
    counts: dict[Parse, int]
    #: Each sample's own.
    scores: tuple[SampleScore, ...]
    metric: str
    weights: Weights
    lang: str
    mode: Mode


#: A sample to score: an answer and its references.
_Sample = tuple[str, Sequence[str]]
_Scored = tuple[SampleScore, Counts | None]


def score(
    predictions: Sequence[str],
    references: Sequence[str | Sequence[str]],
    lang: str = "python",
    weights: Weights = EQUAL,
    mode: Mode = "default",
    processes: int = 1,
    limits: Limits = LIMITS,
) -> CorpusScore:
    """Score answers, each against its reference or the best of its references.

    ``weights``: of n-gram, weighted n-gram, syntax and dataflow. ``mode``: "compat" for the figures of the package
    ``codebleu`` 0.7.0. The result is the same under any number of ``processes``, which are started anew for the call.
    Raises UnsupportedLanguageError, and ValueError for no samples, for lists that don't fit, and as score_sample does.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions can't be scored against {len(references)} references")
    if not predictions:
        raise ValueError("there are no samples to score")
    if processes < 1:
        raise ValueError(f"processes must be at least 1, not {processes}")
    check_weights(weights)
    weights = (weights[0], weights[1], weights[2], weights[3])  # JSON's lists are fine, too
    load(lang)
    samples = [(text, listed(given)) for text, given in zip(predictions, references, strict=True)]
    found = _scored(samples, lang, weights, mode, limits, min(processes, len(samples)))
    scores = tuple(score for score, _ in found)
    states: tuple[Parse, ...] = ("ok", "empty", "unparsable", "refused")
    counts = {state: sum(score.parse == state for score in scores) for state in states}
    figures: tuple[float, float, float, float, float | None]
    if mode == "compat":
        figures = _added_up([entry for _, entry in found if entry is not None], weights)
    else:
        figures = _means(scores)
    name = METRIC_COMPAT if mode == "compat" else METRIC
    return CorpusScore(*figures, len(scores), counts, scores, name, weights, lang, mode)


def _scored(
    samples: Sequence[_Sample], lang: str, weights: Weights, mode: Mode, limits: Limits, processes: int
) -> list[_Scored]:
    """Each sample's score, in order."""
    job = partial(_score_one, lang=lang, weights=weights, mode=mode, limits=limits)
    if processes == 1:
        return [job(sample) for sample in samples]
    # Spawned, not forked: the caller may have threads. About four hand-overs a process keep them evenly busy.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return list(pool.map(job, samples, chunksize=max(1, len(samples) // (4 * processes))))


def _score_one(sample: _Sample, *, lang: str, weights: Weights, mode: Mode, limits: Limits) -> _Scored:
    prediction, references = sample
    if mode == "compat":
        counts, parse, reason = counts_of(prediction, references, load(lang), limits)
        return score_of(counts, parse, reason, weights), counts
    return score_sample(prediction, references, lang, weights, mode, limits), None


def _means(scores: Sequence[SampleScore]) -> tuple[float, float, float, float, float | None]:
    flows = [score.dataflow for score in scores if score.dataflow is not None]
    return (
        fmean(score.codebleu for score in scores),
        fmean(score.ngram for score in scores),
        fmean(score.weighted_ngram for score in scores),
        fmean(score.syntax for score in scores),
        fmean(flows) if flows else None,
    )


def _added_up(counts: Sequence[Counts], weights: Weights) -> tuple[float, float, float, float, float]:
    return as_package(counts, weights) if counts else (0.0, 0.0, 0.0, 0.0, 0.0)
