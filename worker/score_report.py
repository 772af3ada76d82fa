"""What an evaluation reports: scores.json, and items.jsonl with every prompt, answer and grade."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from core.specs import CodeBleuCriterion, Criterion, EvaluationSpec
from worker import statistics
from worker.answer import Answer, extract_code
from worker.grading import Grade, Judged
from worker.items import Item
from worker.scoring import PART_NAMES
from worker.statistics import Values

#: What a criterion's entry repeats of the criterion.
_SHOWN = {"name", "type", "lang", "scorer", "weights", "pass_threshold", "operation", "evaluation_metric"}


@dataclass(frozen=True)
class Asked:
    """What models answered: prompts as they got them, their lengths in tokens, and the answers, in the items' order.

    ``base`` is None when there is nothing to compare: no adapter, or no comparison was asked for. ``seconds`` is the
    time that this attempt spent generating, of both; ``kept`` answers came from an earlier attempt.
    """

    prompts: list[str]
    prompt_tokens: list[int]
    model: list[Answer]
    base: list[Answer] | None
    seconds: float
    made_tokens: int
    kept: int


def make_report(
    spec: EvaluationSpec,
    samples: int,
    model: Sequence[Judged],
    base: Sequence[Judged] | None,
    asked: Asked | None,
) -> dict[str, Any]:
    """What scores.json holds. ``asked`` is None where the items brought the answers."""
    beside: Sequence[Judged | None] = base or [None] * len(model)
    report: dict[str, Any] = {
        "model": spec.model,
        "base_model": spec.base_model,
        "samples": samples,
        "criteria": [_criterion(mine, theirs) for mine, theirs in zip(model, beside, strict=True)],
        "bootstrap": statistics.describe_method(),
        "usage": [],
    }
    if asked is not None:
        report |= _generation(spec, asked)
    return report


def _criterion(model: Judged, base: Judged | None) -> dict[str, Any]:
    columns = _columns(model)
    entry: dict[str, Any] = {
        **model.criterion.model_dump(mode="json", include=_SHOWN),
        "metric": model.metric,
        "model": {**model.figures, "intervals": statistics.intervals(columns)},
        "base": None,
        "difference": None,
        "verdict": None,
    }
    if base is not None:
        theirs = _columns(base)
        found = statistics.differences(columns, theirs)
        first = next(iter(columns))
        entry["base"] = {**base.figures, "intervals": statistics.intervals(theirs)}
        entry["difference"] = statistics.as_json(found)
        entry["verdict"] = asdict(statistics.judge_difference(found[first], measure(model.criterion)))
    return entry


def measure(criterion: Criterion) -> str:
    """What a criterion's score is called in a sentence."""
    return "CodeBLEU" if isinstance(criterion, CodeBleuCriterion) else f"in '{criterion.name:.60}'"


def _columns(judged: Judged) -> dict[str, Values]:
    """A value an item of each figure that gets an interval; the headline first."""
    if not isinstance(judged.criterion, CodeBleuCriterion):
        return {"score": [found.score for found in judged.grades]}
    scores = [found.code for found in judged.grades if found.code is not None]
    parts: dict[str, Values] = {name: [score.parts[name] for score in scores] for name in PART_NAMES}
    return {"codebleu": [score.codebleu for score in scores], **parts}


def _generation(spec: EvaluationSpec, asked: Asked) -> dict[str, Any]:
    """Who was asked how often, what ended the answers, and how fast they came."""
    from worker.environment import hardware, versions  # noqa: PLC0415 - loads torch, which is loaded by now

    sides = [(spec.model, asked.model)]
    if asked.base is not None:
        sides.append((spec.base_model, asked.base))
    return {
        "usage": [
            {
                "model": name,
                "answers": len(answers),
                "prompt_tokens": sum(asked.prompt_tokens),
                "completion_tokens": sum(answer.tokens for answer in answers),
                "finish_reasons": dict(sorted(Counter(answer.finish_reason for answer in answers).items())),
            }
            for name, answers in sides
        ],
        "generation": {
            "seconds": round(asked.seconds, 3),
            "output_tokens": asked.made_tokens,
            "tokens_per_second": round(asked.made_tokens / asked.seconds, 1) if asked.seconds else None,
            "kept_answers": asked.kept,
        },
        "hardware": hardware(),
        "versions": versions(),
    }


def write_items(
    path: Path,
    items: Sequence[Item],
    model: Sequence[Judged],
    base: Sequence[Judged] | None,
    asked: Asked | None,
) -> None:
    """One JSON line an item: its fields, prompt, answers and grades."""
    lang = next((entry.criterion.lang for entry in model if isinstance(entry.criterion, CodeBleuCriterion)), None)
    with path.open("w", encoding="utf-8") as file:
        for position, item in enumerate(items):
            results = [
                _result(entry.criterion, entry.grades[position])
                | {"base": _result(entry.criterion, base[number].grades[position]) if base else None}
                for number, entry in enumerate(model)
            ]
            line = {
                "position": position,
                "item": item.fields,
                "prompt": asked.prompts[position] if asked else None,
                "status": "pass" if all(result["passed"] for result in results) else "fail",
                "sample": _sample(asked.model[position], asked.prompt_tokens[position], lang)
                if asked
                else _given(item, lang),
                "base": _sample(asked.base[position], asked.prompt_tokens[position], lang)
                if asked and asked.base is not None
                else None,
                "results": results,
            }
            file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")


def _sample(answer: Answer, prompt_tokens: int, lang: str | None) -> dict[str, Any]:
    return {
        "output_text": answer.text,
        "code": extract_code(answer.text, lang) if lang else None,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": prompt_tokens,
        "tokens": answer.tokens,
    }


def _given(item: Item, lang: str | None) -> dict[str, Any]:
    """The sample of an item that no model was asked about: the answer that it brought, if it did."""
    text = item.output_text
    return {
        "output_text": text,
        "code": extract_code(text, lang) if lang and text is not None else None,
        "finish_reason": "stop",
        "prompt_tokens": 0,
        "tokens": 0,
    }


def _result(criterion: Criterion, found: Grade) -> dict[str, Any]:
    entry = {
        "name": criterion.name,
        "type": criterion.type,
        "score": found.score,
        "passed": found.passed,
        "exact_match": found.exact,
        "reason": found.reason,
    }
    if found.code is not None:
        entry |= {"parts": found.code.parts, "parse": found.code.parse, "raw": found.code.raw}
    return entry
