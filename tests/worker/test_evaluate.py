"""Whole evaluations of the tiny Llama with a random adapter, each in a process of its own as the worker starts it."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.worker.test_merge import write_adapter
from worker.codebleu import METRIC
from worker.protocol import Answered, Done, Event, ExitCode, Failed, Graded, Line, Progress, parse_line

REFERENCE = "def add(first):\n    total = first + {0}\n    return total"
ITEMS = [{"question": f"Add {number}.", "completion": REFERENCE.format(number)} for number in range(5)]
ANSWER = {"type": "code_bleu", "name": "answer", "input": "{{sample.output_text}}", "reference": "{{item.completion}}"}
ITSELF = ANSWER | {"name": "itself", "input": "{{item.completion}}", "weights": [0.1, 0.1, 0.4, 0.4]}
ANSWER_KEYS = {"output_text", "code", "finish_reason", "prompt_tokens", "tokens"}
CORPUS = {
    *("codebleu", "ngram", "weighted_ngram", "syntax", "dataflow", "package_corpus", "passed", "failed"),
    *("empty", "unparsable", "refused", "truncated", "exact_match", "intervals"),
}


@pytest.fixture(scope="module")
def adapter(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_adapter(tiny_llama, tmp_path_factory.mktemp("adapter"))
    hone = {
        "quantization": {"type": "nf4", "double_quantization": False},
        "data": {"system_prompt": "You write Python."},
    }
    (folder / "manifest.json").write_text(json.dumps({"spec": {"hone": hone}}))
    return folder


def write_input(folder: Path, base: Path, *, adapter: Path | None = None, items=ITEMS, **spec) -> Path:
    (folder / "items.jsonl").write_text("".join(json.dumps({"item": item}) + "\n" for item in items))
    job = {
        "job_id": "evalrun-1",
        "base_model": {"source": "folder", "path": str(base)},
        "cache": str(folder / "cache"),
        "items_file": str(folder / "items.jsonl"),
        "adapter": str(adapter) if adapter else None,
        "spec": {
            "model": "ft:tiny:hone::1" if adapter else "tiny",
            "base_model": "tiny",
            "items_file": "file-1",
            "messages": [{"role": "user", "content": "{{item.question}}"}],
            "criteria": [ANSWER, ITSELF],
            "sampling": {"max_tokens": 12},
        }
        | spec,
    }
    (folder / "input.json").write_text(json.dumps(job))
    return folder / "input.json"


def command(source: Path) -> list[str]:
    return [sys.executable, "-m", "worker.evaluate", str(source), str(source.parent / "out")]


def evaluate(source: Path) -> tuple[int, list[Line], str]:
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command(source), capture_output=True, text=True, env=env, timeout=120, check=False)
    return ended.returncode, [parse_line(line) for line in ended.stdout.splitlines()], ended.stderr


@pytest.fixture(scope="module")
def run(tiny_llama: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory):
    """One evaluation of an adapter beside its base: lines and artifacts."""
    folder = tmp_path_factory.mktemp("run")
    code, lines, stderr = evaluate(write_input(folder, tiny_llama, adapter=adapter))
    assert code == ExitCode.DONE, stderr
    return lines, folder / "out" / "artifacts"


def test_the_run_tells_its_phases_and_how_far_it_is(run):
    lines, _ = run
    assert [line.message for line in lines if isinstance(line, Event)] == [
        "Loading base model tiny",
        "Generating 5 answers with the base model",
        "Generating 5 answers with the fine-tuned model",
        "Scoring the last answers",
    ]
    progress = [line for line in lines if isinstance(line, Progress)]
    assert [(line.done, line.total) for line in progress] == [(0, 10), (5, 10), (5, 10), (10, 10)]
    assert progress[0].seconds_left is None
    assert progress[1].seconds_left > 0
    assert progress[-1].seconds_left == 0
    assert isinstance(lines[-1], Done)


def test_every_answer_and_its_grades_are_told_as_they_come(run):
    lines, artifacts = run
    rows = [json.loads(line) for line in (artifacts / "items.jsonl").read_text().splitlines()]
    answered = {(line.side, line.position): line.answer for line in lines if isinstance(line, Answered)}
    assert len(answered) == 10
    for (side, position), answer in answered.items():
        kept = rows[position]["sample" if side == "model" else "base"]
        assert answer == {name: kept[name if name != "text" else "output_text"] for name in answer}
    graded = {(line.side, line.position): line.grades for line in lines if isinstance(line, Graded)}
    assert set(graded) == set(answered)
    for (side, position), grades in graded.items():
        for found, result in zip(grades, rows[position]["results"], strict=True):
            assert found["score"] == (result if side == "model" else result["base"])["score"]


def test_scores_hold_both_models_and_what_made_them(run):
    lines, artifacts = run
    scores = json.loads((artifacts / "scores.json").read_text())
    assert scores == lines[-1].report
    assert (scores["model"], scores["base_model"], scores["samples"]) == ("ft:tiny:hone::1", "tiny", 5)
    answer, itself = scores["criteria"]
    assert answer["metric"] == METRIC
    assert answer["scorer"] == "hone"
    assert (itself["lang"], itself["weights"], itself["pass_threshold"]) == ("python", [0.1, 0.1, 0.4, 0.4], 0.5)
    for criterion in (answer, itself):
        for side in ("model", "base"):
            assert set(criterion[side]) == CORPUS
            assert criterion[side]["passed"] + criterion[side]["failed"] == 5
    assert answer["model"]["codebleu"] < 0.2, "random weights write no code"
    assert itself["model"]["codebleu"] == pytest.approx(1)
    assert itself["model"]["package_corpus"]["codebleu"] == pytest.approx(1)
    assert itself["model"]["passed"] == itself["model"]["exact_match"] == 5
    assert set(itself["difference"]) == {"codebleu", "ngram", "weighted_ngram", "syntax", "dataflow"}
    assert itself["difference"]["codebleu"] == {"mean": 0.0, "interval": None, "samples": 5}
    assert itself["verdict"]["outcome"] == "no difference shown"
    assert "5 samples, too few for an interval" in itself["verdict"]["sentence"]
    assert scores["bootstrap"]["resamples"] == 2000
    generation = scores["generation"]
    assert 0 < generation["output_tokens"] <= 2 * 5 * 12
    assert generation["tokens_per_second"] == pytest.approx(
        generation["output_tokens"] / generation["seconds"], rel=0.05
    )
    assert {"torch", "codebleu"} <= set(scores["versions"])
    assert scores["hardware"]["device"] == "cpu"


def test_every_item_is_kept_with_prompt_answers_and_scores(run, tiny_llama):
    _, artifacts = run
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    rows = [json.loads(line) for line in (artifacts / "items.jsonl").read_text().splitlines()]
    assert [row["position"] for row in rows] == [0, 1, 2, 3, 4]
    for row, item in zip(rows, ITEMS, strict=True):
        assert row["item"] == item
        question = item["question"]
        assert row["prompt"] == (
            "<|im_start|>system\nYou write Python.<|im_end|>\n"
            f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        ), "as in training"
        assert row["status"] == "fail"
        assert ANSWER_KEYS == set(row["sample"]) == set(row["base"])
        answer, itself = row["results"]
        assert (answer["passed"], itself["passed"]) == (False, True)
        assert itself["score"] == pytest.approx(1)
        assert set(itself["parts"]) == {"ngram", "weighted_ngram", "syntax", "dataflow"}
        assert set(itself["base"]) == set(itself) - {"base"}
        prompt = tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
        assert row["sample"]["prompt_tokens"] == row["base"]["prompt_tokens"] == len(prompt)
    scores = json.loads((artifacts / "scores.json").read_text())
    for usage, side, model in zip(scores["usage"], ("sample", "base"), ("ft:tiny:hone::1", "tiny"), strict=True):
        assert usage == {
            "model": model,
            "answers": 5,
            "prompt_tokens": sum(row[side]["prompt_tokens"] for row in rows),
            "completion_tokens": sum(row[side]["tokens"] for row in rows),
            "finish_reasons": dict(Counter(row[side]["finish_reason"] for row in rows)),
        }
    assert any(row["sample"] != row["base"] for row in rows), "the adapter changes answers"


def test_the_picture_is_a_png(run):
    _, artifacts = run
    assert (artifacts / "codebleu.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert sorted(path.name for path in artifacts.iterdir()) == ["codebleu.png", "items.jsonl", "scores.json"]


def test_a_base_model_is_evaluated_alone(tiny_llama, tmp_path):
    code, lines, stderr = evaluate(write_input(tmp_path, tiny_llama, criteria=[ANSWER]))
    assert code == ExitCode.DONE, stderr
    assert lines[-1].report["criteria"][0]["base"] is None
    assert [usage["model"] for usage in lines[-1].report["usage"]] == ["tiny"]
    row = json.loads((tmp_path / "out" / "artifacts" / "items.jsonl").read_text().splitlines()[0])
    assert row["base"] is None
    assert "system" not in row["prompt"]
    assert row["results"][0]["base"] is None


def test_a_model_that_is_not_covered_is_answered_by_transformers_and_the_run_says_why(tiny_llama, tmp_path):
    base = Path(shutil.copytree(tiny_llama, tmp_path / "base"))
    config = json.loads((base / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}
    (base / "config.json").write_text(json.dumps(config))
    code, lines, stderr = evaluate(write_input(tmp_path, base, criteria=[ANSWER], items=ITEMS[:2]))
    assert code == ExitCode.DONE, stderr
    warned = [line.message for line in lines if isinstance(line, Event) and line.level == "warn"]
    assert warned == ["Generating with transformers, which is slower: rotary positions of type dynamic are not covered"]


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"items": [ITEMS[0], {"question": "Add."}]}, "missing_field", "line 2, field 'item.completion'"),
        ({"sampling": {"max_tokens": 512}}, "context_length_exceeded", "line 1: the prompt has"),
    ],
)
def test_what_can_not_be_evaluated_is_named_before_anything_is_generated(tiny_llama, tmp_path, changes, code, words):
    ended, lines, _ = evaluate(write_input(tmp_path, tiny_llama, **changes))
    assert ended == ExitCode.FAILED
    assert len(lines) == 1
    assert isinstance(lines[0], Failed)
    assert lines[0].code == code
    assert words in lines[0].message
    assert not (tmp_path / "out" / "artifacts").exists()


def test_a_run_that_is_told_to_stop_stops_at_once(tiny_llama, tmp_path):
    items = [{"question": "Add. " * 20, "completion": "x = 1"}] * 2000
    source = write_input(tmp_path, tiny_llama, items=items, sampling={"max_tokens": 300})
    with subprocess.Popen(command(source), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        for line in child.stdout:
            if isinstance(parse_line(line), Progress):
                break
        child.send_signal(signal.SIGTERM)
        assert child.wait(timeout=5) == ExitCode.STOPPED


def test_a_run_outlives_the_shell_that_started_it(tiny_llama, tmp_path):
    in_a_shell = ["sh", "-c", '"$@" & wait', "sh", *command(write_input(tmp_path, tiny_llama, criteria=[ANSWER]))]
    with subprocess.Popen(in_a_shell, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as shell:
        assert isinstance(parse_line(shell.stdout.readline()), Event)
        shell.kill()
        shell.wait()
        lines = [parse_line(line) for line in shell.stdout]
    assert isinstance(lines[-1], Done)


def test_input_that_can_not_be_read_is_a_crash_with_a_trace(tmp_path):
    (tmp_path / "input.json").write_text("{}")
    code, lines, stderr = evaluate(tmp_path / "input.json")
    assert code not in set(ExitCode)
    assert lines == []
    assert "Traceback" in stderr
