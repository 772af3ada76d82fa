"""An evaluation, start to end, in one process: answers of a model and its base, judged by every criterion.

    python -m worker.evaluate INPUT.json OUT/

INPUT.json is a ``worker.protocol.EvaluationInput``. Progress, and each answer with its grades as it comes, goes to
standard output as JSON lines; OUT/artifacts/ receives ``items.jsonl``, ``scores.json`` and ``codebleu.png``. Nothing
else is needed: no Celery, no database.
"""

import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from core.errors import HoneError
from worker.answer import Answer
from worker.grading import Grading
from worker.items import Item, load_items
from worker.kept import read_kept
from worker.protocol import Done, EvaluationInput, Event, ExitCode, Failed, LineWriter, take_stdout
from worker.score_report import Asked, make_report, write_items


def evaluate(job: EvaluationInput, out: Path, lines: LineWriter) -> None:
    """Run the job. Raises HoneError for what trying again would not mend."""
    items, kept = load_items(job), read_kept(job.kept)
    asked: Asked | None = None
    with Grading(job.spec.criteria, items, kept, lines) as grading:
        if job.spec.source == "jsonl":
            _judge_given(items, grading)
        else:
            # Imported here, for torch takes seconds to load: SIGTERM is heard by then, items that can't be used are
            # told, and what needs no model needs no torch.
            from worker.answers import answer_items  # noqa: PLC0415 - see above
            from worker.gpu_lock import hold_gpu  # noqa: PLC0415 - see above

            hold_gpu(lambda message: lines.send(Event(message=message)), lambda: False)
            asked = answer_items(job, items, kept, lines, on_answer=grading.put)
        lines.send(Event(message="Scoring the last answers"))
        judged = grading.finish()
    model, base = judged["model"], judged["base"] or None
    report = make_report(job.spec, len(items), model, base, asked)

    from worker.score_plot import plot_scores  # noqa: PLC0415 - matplotlib takes a second to load

    folder = out / "artifacts"
    folder.mkdir(parents=True, exist_ok=True)
    write_items(folder / "items.jsonl", items, model, base, asked)
    (folder / "scores.json").write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    plot_scores(report, folder / "codebleu.png")
    lines.send(Done(report=report))


def _judge_given(items: Sequence[Item], grading: Grading) -> None:
    """Judge what the items hold; an answer that one brings counts as ended by its author."""
    for position, item in enumerate(items):
        text = item.output_text
        grading.put("model", position, None if text is None else Answer(text, 0, "stop"))


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
    """End at once: each answer was told as it came, so the next attempt has it, and the scorer dies with us."""
    os._exit(ExitCode.STOPPED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
