"""Grading beside generation: as answers come, by every criterion, in the thread that keeps the scorer."""

import io
import json
import queue
import subprocess
import sys
from pathlib import Path

import pytest

from core.errors import DatasetError
from core.specs import EvaluationSpec
from tests.worker.test_evaluate import REFERENCE
from worker.answer import Answer
from worker.grading import Grading, from_json, to_json
from worker.items import Item, load_items
from worker.kept import Kept
from worker.protocol import Done, EvaluationInput, ExitCode, LineWriter, parse_line

BOTH = {"input": "{{sample.output_text}}", "reference": "{{item.code}}"}
CRITERIA = [
    {"type": "code_bleu", "name": "code", **BOTH},
    {"type": "string_check", "name": "same", "operation": "eq", **BOTH},
    {"type": "text_similarity", "name": "close", "evaluation_metric": "fuzzy_match", "pass_threshold": 0.8, **BOTH},
]
CODE = REFERENCE.format(1)
SPEC = EvaluationSpec.model_validate({"source": "jsonl", "items_file": "f", "criteria": CRITERIA})
ITEMS = [Item(number, {"code": CODE}, ()) for number in range(1, 4)]


class Told(io.StringIO):
    """Lines as they are told, for a reader in another thread."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: queue.Queue[str] = queue.Queue()

    def write(self, text: str) -> int:
        self.lines.put(text)
        return len(text)


def test_an_answer_is_graded_while_others_are_still_awaited():
    told = Told()
    with Grading(SPEC.criteria, ITEMS, Kept(), LineWriter(told)) as grading:
        grading.put("model", 1, Answer(f"Here:\n```python\n{CODE}\n```", 9, "fence"))
        line = parse_line(told.lines.get(timeout=30))
        assert (line.type, line.side, line.position) == ("graded", "model", 1)
        code, same, close = (from_json(found) for found in line.grades)
        assert code.score == pytest.approx(1)
        assert code.exact
        assert (same.score, same.passed) == (0.0, False), "only CodeBLEU looks at the code alone"
        assert 0.7 < close.score < 1
        grading.put("model", 0, Answer(CODE, 9, "stop"))
        grading.put("model", 2, Answer("", 1, "length"))
        judged = grading.finish()
    assert judged["base"] == []
    code, same, close = judged["model"]
    assert [found.score for found in code.grades] == pytest.approx([1, 1, 0])
    assert (code.figures["empty"], code.figures["truncated"], code.figures["exact_match"]) == (1, 1, 2)
    assert same.figures == {
        "score": pytest.approx(1 / 3), "passed": 1, "failed": 2, "refused": 0, "exact_match": 1, "truncated": 1,
    }  # fmt: skip
    assert (same.metric, close.metric.partition(" ")[0]) == ("string_check eq", "fuzzy_match")


def test_grades_that_were_kept_are_taken_as_they_are():
    with Grading(SPEC.criteria, ITEMS[:1], Kept(), LineWriter(io.StringIO())) as grading:
        grading.put("model", 0, Answer(CODE, 9, "stop"))
        first = grading.finish()["model"]
    row = [to_json(entry.grades[0]) for entry in first]
    kept = Kept()
    kept.grades["model"][0] = json.loads(json.dumps(row))
    told = Told()
    with Grading(SPEC.criteria, ITEMS[:1], kept, LineWriter(told)) as grading:
        grading.put("model", 0, Answer(CODE, 9, "stop"))
        assert grading.finish()["model"] == first
    assert told.lines.empty(), "it was graded again"


def test_what_breaks_in_the_thread_is_raised_where_its_results_are_asked_for():
    with Grading(SPEC.criteria, ITEMS, Kept(), LineWriter(io.StringIO())) as grading:
        grading.put("model", 0, None)  # a criterion names an answer, and there is none
        with pytest.raises(DatasetError, match=r"sample\.output_text"):
            grading.finish()


def test_a_run_that_fails_leaves_no_thread_and_no_process():
    with pytest.raises(RuntimeError), Grading(SPEC.criteria, ITEMS, Kept(), LineWriter(io.StringIO())) as grading:
        grading.put("model", 0, Answer(CODE, 9, "stop"))
        raise RuntimeError
    assert not grading._thread.is_alive()


# --- Items that bring their answers ---------------------------------------------------------------------------------


def write_job(folder: Path, *records: dict, spec: EvaluationSpec = SPEC) -> EvaluationInput:
    (folder / "items.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return EvaluationInput(job_id="j", spec=spec, cache=folder, items_file=folder / "items.jsonl")


def test_items_that_bring_their_answers_are_judged_without_a_model_or_torch(tmp_path: Path):
    records = [
        {"item": {"code": CODE, "draft": CODE.replace("total", "sum_")}, "sample": {"output_text": CODE}},
        {"item": {"code": CODE, "draft": ""}, "sample": {"output_text": "no code at all, sorry"}},
    ]
    drafts = {"type": "code_bleu", "name": "drafts", "input": "{{item.draft}}", "reference": "{{item.code}}"}
    job = write_job(tmp_path, *records, spec=SPEC.model_copy(update={"criteria": (*SPEC.criteria, _criterion(drafts))}))
    (tmp_path / "input.json").write_text(job.model_dump_json())
    program = (
        "import sys; from worker import evaluate; code = evaluate.main(sys.argv[1:]);"
        "sys.stderr.write(f'torch: {\"torch\" in sys.modules}'); sys.exit(code)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "input.json"), str(tmp_path / "out")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == ExitCode.DONE, ended.stderr
    assert "torch: False" in ended.stderr
    done = parse_line(ended.stdout.splitlines()[-1])
    assert isinstance(done, Done)
    code, same, close, drafts = done.report["criteria"]
    assert [code["model"]["passed"], same["model"]["passed"], close["model"]["passed"]] == [1, 1, 1]
    assert 0.3 < drafts["model"]["codebleu"] < 0.5, "renamed names lose only the n-gram parts; the other is empty"
    assert {entry["base"] for entry in done.report["criteria"]} == {None}
    rows = [json.loads(line) for line in (tmp_path / "out" / "artifacts" / "items.jsonl").read_text().splitlines()]
    assert [row["status"] for row in rows] == ["pass", "fail"]
    assert rows[0]["sample"] == {
        "output_text": CODE, "code": CODE, "finish_reason": "stop", "prompt_tokens": 0, "tokens": 0,
    }  # fmt: skip
    assert (rows[0]["prompt"], rows[0]["base"]) == (None, None)
    assert (tmp_path / "out" / "artifacts" / "codebleu.png").read_bytes().startswith(b"\x89PNG")


def _criterion(fields: dict):
    return EvaluationSpec.model_validate({"source": "jsonl", "items_file": "f", "criteria": [fields]}).criteria[0]


@pytest.mark.parametrize("sample", [None, {}, {"output_text": 1}, "text"])
def test_an_answer_that_an_item_does_not_bring_is_named(tmp_path: Path, sample):
    job = write_job(tmp_path, {"item": {"code": CODE}, "sample": sample})
    with pytest.raises(DatasetError, match=r"line 1, field 'sample\.output_text'"):
        load_items(job)
