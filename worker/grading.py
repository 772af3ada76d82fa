"""Grades: every answer judged by every criterion, in a thread beside the generation that brings the answers.

The thread waits for the scorer's process nearly all the time, so generation loses nothing to it; when the last answer
comes, all others have their grades.
"""

import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from queue import SimpleQueue
from types import TracebackType
from typing import Any

from core.graders import check_string, similarity, too_long
from core.specs import CodeBleuCriterion, Criterion, StringCheckCriterion, TextSimilarityCriterion
from worker.answer import Answer, extract_code
from worker.items import Item, render_pair
from worker.kept import Kept, Side
from worker.protocol import Graded, LineWriter
from worker.scoring import PairScore, Scorer, corpus


@dataclass(frozen=True)
class Grade:
    """One answer by one criterion. ``code`` has CodeBLEU's parts; ``reason`` says why an answer was not graded."""

    score: float
    passed: bool
    exact: bool
    code: PairScore | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Judged:
    """One criterion's grades of one model's answers, the figures of the whole, and the scorer's name and version."""

    criterion: Criterion
    grades: list[Grade]
    figures: dict[str, Any]
    metric: str


def grade(scorer: Scorer, criterion: Criterion, item: Item, answer: Answer | None) -> Grade:
    """Judge one answer; ``{{sample.output_text}}`` is its text, for CodeBLEU the code in it."""
    text, reference = _pair(criterion, item, answer)
    exact = text.strip() == reference.strip()
    match criterion:
        case CodeBleuCriterion():
            how: dict[str, Any] = {"lang": criterion.lang, "weights": criterion.weights, "scorer": criterion.scorer}
            found = scorer.score(text, reference, **how)
            return Grade(found.codebleu, found.passes(criterion.pass_threshold), exact, found, found.reason)
        case StringCheckCriterion():
            passed = check_string(criterion.operation, text, reference)
            return Grade(float(passed), passed, exact)
        case TextSimilarityCriterion():
            if (reason := too_long(text, reference)) is not None:
                return Grade(0.0, False, exact, reason=reason)
            score = similarity(criterion.evaluation_metric, text, reference)
            return Grade(score, score >= criterion.pass_threshold, exact)


def _pair(criterion: Criterion, item: Item, answer: Answer | None) -> tuple[str, str]:
    if answer is None:
        return render_pair(criterion, item, None)
    text = extract_code(answer.text, criterion.lang) if isinstance(criterion, CodeBleuCriterion) else answer.text
    return render_pair(criterion, item, text)


def to_json(found: Grade) -> dict[str, Any]:
    """A grade as it is kept."""
    return asdict(found)


def from_json(kept: dict[str, Any]) -> Grade:
    """A grade that was kept."""
    code = kept["code"]
    return Grade(**{**kept, "code": None if code is None else PairScore(**code)})


class Grading:
    """Grades answers as they are put; a context manager. ``finish`` gives what came of it."""

    def __init__(self, criteria: Sequence[Criterion], items: Sequence[Item], kept: Kept, lines: LineWriter) -> None:
        self._criteria, self._items, self._lines = criteria, items, lines
        self._answers: dict[Side, dict[int, Answer | None]] = {"model": {}, "base": {}}
        self._grades: dict[Side, dict[int, list[Grade]]] = {
            side: {position: [from_json(entry) for entry in grades] for position, grades in kept.grades[side].items()}
            for side in ("model", "base")
        }
        self._judged: dict[Side, list[Judged]] = {}
        self._error: BaseException | None = None
        self._given_up = False
        self._queue: SimpleQueue[tuple[Side, int, Answer | None] | None] = SimpleQueue()
        # One thread for the scorer's whole life: its process ends with the thread that started it.
        self._thread = threading.Thread(target=self._run, name="grading", daemon=True)

    def __enter__(self) -> "Grading":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._given_up = True
        self._queue.put(None)
        self._thread.join()

    def put(self, side: Side, position: int, answer: Answer | None) -> None:
        """Have an answer graded, unless its grades were kept."""
        self._queue.put((side, position, answer))

    def finish(self) -> dict[Side, list[Judged]]:
        """Wait for the last grade; each side's judgements, in the criteria's order."""
        self._queue.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._judged

    def _run(self) -> None:
        try:
            with Scorer() as scorer:
                while not self._given_up and (put := self._queue.get()) is not None:
                    self._grade(scorer, *put)
                if not self._given_up:
                    self._judged = {side: self._judge(scorer, side) for side in ("model", "base")}
        except BaseException as error:  # raised again by finish()
            self._error = error

    def _grade(self, scorer: Scorer, side: Side, position: int, answer: Answer | None) -> None:
        self._answers[side][position] = answer
        if position in self._grades[side]:
            return
        grades = [grade(scorer, criterion, self._items[position], answer) for criterion in self._criteria]
        self._grades[side][position] = grades
        self._lines.send(Graded(side=side, position=position, grades=[to_json(found) for found in grades]))

    def _judge(self, scorer: Scorer, side: Side) -> list[Judged]:
        positions = sorted(self._answers[side])
        if not positions:
            return []
        answers = [self._answers[side][position] for position in positions]
        rows = [self._grades[side][position] for position in positions]
        return [
            self._whole(scorer, criterion, answers, [row[number] for row in rows])
            for number, criterion in enumerate(self._criteria)
        ]

    def _whole(
        self, scorer: Scorer, criterion: Criterion, answers: Sequence[Answer | None], grades: list[Grade]
    ) -> Judged:
        cut = sum(answer is not None and answer.finish_reason == "length" for answer in answers)
        if not isinstance(criterion, CodeBleuCriterion):
            figures = _text_figures(criterion, grades) | {"truncated": cut}
            return Judged(criterion, grades, figures, _metric(criterion))
        pairs = [_pair(criterion, item, answer) for item, answer in zip(self._items, answers, strict=True)]
        scores = [found.code for found in grades if found.code is not None]
        sound = [pair for pair, score in zip(pairs, scores, strict=True) if score.parse == "ok"]
        figures = corpus(
            pairs,
            scores,
            pass_threshold=criterion.pass_threshold,
            truncated=cut,
            package_corpus=scorer.package_corpus(
                sound, lang=criterion.lang, weights=criterion.weights, scorer=criterion.scorer
            ),
        )
        return Judged(criterion, grades, figures, scorer.metric(criterion.scorer))


def _text_figures(criterion: StringCheckCriterion | TextSimilarityCriterion, grades: Sequence[Grade]) -> dict[str, Any]:
    passed = sum(found.passed for found in grades)
    return {
        "score": sum(found.score for found in grades) / len(grades),
        "passed": passed,
        "failed": len(grades) - passed,
        "refused": sum(found.reason is not None for found in grades),
        "exact_match": sum(found.exact for found in grades),
    }


def _metric(criterion: StringCheckCriterion | TextSimilarityCriterion) -> str:
    """What computed a criterion's scores."""
    if isinstance(criterion, StringCheckCriterion):
        return f"string_check {criterion.operation}"
    library = {"bleu": "sacrebleu", "fuzzy_match": "rapidfuzz", "rouge_l": "rapidfuzz"}.get(criterion.evaluation_metric)
    version = f" ({library} {metadata.version(library)})" if library else ""
    return f"{criterion.evaluation_metric}{version}"
