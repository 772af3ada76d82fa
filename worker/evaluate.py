"""An evaluation, start to end, in one process: answers of a model and its base, scored by CodeBLEU.

    python -m worker.evaluate INPUT.json OUT/

INPUT.json is a ``worker.protocol.EvaluationInput``. Progress goes to standard output as JSON lines; OUT/artifacts/
receives ``items.jsonl``, ``scores.json`` and ``codebleu.png``. Nothing else is needed: no Celery, no database.
"""

import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from core.errors import HoneError
from core.specs import CodeBleuCriterion
from worker.items import Item, load_items, render_pair
from worker.protocol import Done, EvaluationInput, Event, ExitCode, Failed, LineWriter, take_stdout
from worker.scoring import Pair, PairScore, Scorer, corpus

if TYPE_CHECKING:
    from worker.answers import Answers
    from worker.generate import Answer


@dataclass(frozen=True)
class Side:
    """One criterion's view of one model's answers."""

    scores: list[PairScore]
    corpus: dict[str, Any]


@dataclass(frozen=True)
class Judged:
    """One criterion's results."""

    criterion: CodeBleuCriterion
    model: Side
    base: Side | None


def evaluate(job: EvaluationInput, out: Path, lines: LineWriter) -> None:
    """Run the job. Raises HoneError for what trying again would not mend."""
    items = load_items(job)

    # Imported here, for torch takes seconds to load: SIGTERM is heard by then, and items that can't be used are told.
    from worker.answers import answer_items  # noqa: PLC0415 - see above
    from worker.gpu_lock import hold_gpu  # noqa: PLC0415 - see above
    from worker.score_plot import plot_scores  # noqa: PLC0415 - see above

    hold_gpu(lambda message: lines.send(Event(message=message)), lambda: False)
    answers = answer_items(job, items, lines)
    lines.send(Event(message="Scoring the answers by CodeBLEU"))
    with Scorer() as scorer:
        judged = [judge(scorer, criterion, items, answers) for criterion in job.spec.criteria]
        report = make_report(job, answers, judged, scorer.metric)
    folder = out / "artifacts"
    folder.mkdir(parents=True, exist_ok=True)
    write_items(folder / "items.jsonl", items, answers, judged)
    (folder / "scores.json").write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    plot_scores(report, folder / "codebleu.png")
    lines.send(Done(report=report))


def judge(scorer: Scorer, criterion: CodeBleuCriterion, items: Sequence[Item], answers: "Answers") -> Judged:
    """Score every answer by one criterion."""
    return Judged(
        criterion,
        _side(scorer, criterion, items, answers.model),
        _side(scorer, criterion, items, answers.base) if answers.base is not None else None,
    )


def _side(scorer: Scorer, criterion: CodeBleuCriterion, items: Sequence[Item], answers: Sequence["Answer"]) -> Side:
    pairs: list[Pair] = [render_pair(criterion, item, answer.code) for item, answer in zip(items, answers, strict=True)]
    how: dict[str, Any] = {"lang": criterion.lang, "weights": criterion.weights}
    scores = [scorer.score(candidate, reference, **how) for candidate, reference in pairs]
    sound = [pair for pair, score in zip(pairs, scores, strict=True) if score.parse == "ok"]
    figures = corpus(
        pairs,
        scores,
        pass_threshold=criterion.pass_threshold,
        truncated=sum(answer.finish_reason == "length" for answer in answers),
        package_corpus=scorer.package_corpus(sound, **how),
    )
    return Side(scores, figures)


def make_report(job: EvaluationInput, answers: "Answers", judged: Sequence[Judged], metric: str) -> dict[str, Any]:
    """What scores.json holds."""
    from worker.environment import hardware, versions  # noqa: PLC0415 - loads torch, which is loaded by now

    usage = [_usage(job.spec.model, answers.model, answers)]
    if answers.base is not None:
        usage.append(_usage(job.spec.base_model, answers.base, answers))
    tokens = sum(entry["completion_tokens"] for entry in usage)
    return {
        "model": job.spec.model,
        "base_model": job.spec.base_model,
        "samples": len(answers.model),
        "criteria": [
            {
                **entry.criterion.model_dump(
                    mode="json", include={"name", "type", "lang", "weights", "pass_threshold"}
                ),
                "metric": metric,
                "model": entry.model.corpus,
                "base": entry.base.corpus if entry.base else None,
            }
            for entry in judged
        ],
        "usage": usage,
        "generation": {
            "seconds": round(answers.seconds, 3),
            "output_tokens": tokens,
            "tokens_per_second": round(tokens / answers.seconds, 1) if answers.seconds else None,
        },
        "hardware": hardware(),
        "versions": versions(),
    }


def _usage(model: str, given: Sequence["Answer"], answers: "Answers") -> dict[str, Any]:
    """How often a model was asked, and the tokens that went in and came out."""
    return {
        "model": model,
        "answers": len(given),
        "prompt_tokens": sum(answers.prompt_tokens),
        "completion_tokens": sum(answer.tokens for answer in given),
    }


def write_items(path: Path, items: Sequence[Item], answers: "Answers", judged: Sequence[Judged]) -> None:
    """One JSON line an item: its fields, prompt, answers and scores."""
    with path.open("w", encoding="utf-8") as file:
        for position, item in enumerate(items):
            prompt_tokens = answers.prompt_tokens[position]
            results = [_result(entry, position) for entry in judged]
            line = {
                "position": position,
                "item": item.fields,
                "prompt": answers.prompts[position],
                "status": "pass" if all(result["passed"] for result in results) else "fail",
                "sample": _sample(answers.model[position], prompt_tokens),
                "base": _sample(answers.base[position], prompt_tokens) if answers.base is not None else None,
                "results": results,
            }
            file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")


def _sample(answer: "Answer", prompt_tokens: int) -> dict[str, Any]:
    return {
        "output_text": answer.text,
        "code": answer.code,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": prompt_tokens,
        "tokens": answer.tokens,
    }


def _result(judged: Judged, position: int) -> dict[str, Any]:
    base = _scored(judged.criterion, judged.base.scores[position]) if judged.base else None
    return _scored(judged.criterion, judged.model.scores[position]) | {"base": base}


def _scored(criterion: CodeBleuCriterion, score: PairScore) -> dict[str, Any]:
    return {
        "name": criterion.name,
        "type": criterion.type,
        "score": score.codebleu,
        "passed": score.passes(criterion.pass_threshold),
        "parts": score.parts,
        "parse": score.parse,
        "reason": score.reason,
        "raw": score.raw,
    }


def main(arguments: list[str]) -> ExitCode:
    """Run the job that the command line names; every way to end has its exit code."""
    signal.signal(signal.SIGTERM, _stop)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    lines = take_stdout()
    source, out = Path(arguments[0]), Path(arguments[1])
    out.mkdir(parents=True, exist_ok=True)
    try:
        evaluate(EvaluationInput.model_validate_json(source.read_bytes()), out, lines)
        return ExitCode.DONE
    except HoneError as error:
        traceback.print_exc()
        lines.send(Failed(code=error.code or error.type, message=error.message, param=error.param))
        return ExitCode.FAILED


def _stop(number: int, frame: FrameType | None) -> None:
    """End at once: an evaluation keeps nothing that a second start could go on from, and the scorer dies with us."""
    os._exit(ExitCode.STOPPED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
