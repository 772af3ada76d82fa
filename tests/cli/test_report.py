"""report.md from what a real fine-tune and a real evaluation of the tiny Llama leave behind."""

import io
import json
import re
from pathlib import Path

import pytest

from cli.demo import RESULTS, check_results, show
from cli.embedded import DemoError
from cli.report import DemoRun, write_report
from cli.samples import Sample, split, stdlib_samples
from core.catalogue import FolderModel
from core.specs import CodeBleuCriterion, EvaluationSpec, FineTuneSpec, SamplingSpec, TemplateMessage
from worker.bundles import BundleError, unpack
from worker.protocol import Done, EvaluationInput, LineWriter, Started, Step, TrainingInput, parse_line

FINE_TUNE = FineTuneSpec.model_validate(
    {
        "model": "tiny",
        "training_file": "file-1",
        "hyperparameters": {"batch_size": 4, "n_epochs": 1},
        "hone": {
            "training": {"precision": "float32", "eval_steps": 1},
            "data": {"max_seq_length": 256, "validation_fraction": 0.2},
        },
    }
)


def evaluation_spec() -> EvaluationSpec:
    return EvaluationSpec(
        model="ft:tiny:default:demo:1",
        base_model="tiny",
        items_file="file-2",
        messages=(TemplateMessage(role="user", content="{{item.instruction}}"),),
        criteria=(
            CodeBleuCriterion(
                type="code_bleu", name="CodeBLEU", input="{{sample.output_text}}", reference="{{item.completion}}"
            ),
        ),
        sampling=SamplingSpec(max_tokens=8),
    )


def told(stream: io.StringIO, kind: type) -> list:
    return [line for line in map(parse_line, stream.getvalue().splitlines()) if isinstance(line, kind)]


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [sample for sample in stdlib_samples() if sample.characters < 400][:24]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_llama: Path, samples) -> tuple[Path, DemoRun]:
    """A folder as the demo downloads it, and what the API would have told."""
    from api.job_schemas import fine_tuning_job
    from models.status import JobStatus
    from models.tables import Job
    from worker.evaluate import evaluate
    from worker.progress import StopRequest
    from worker.train import train

    folder = tmp_path_factory.mktemp("demo")
    base = FolderModel(source="folder", path=tiny_llama)
    to_train, held_out = split(samples, 12)
    (folder / "train.jsonl").write_text("".join(sample.training_line() for sample in to_train))
    (folder / "items.in").write_text("".join(sample.item_line() for sample in held_out))
    out = folder / "demo-out"

    lines = io.StringIO()
    tuning = TrainingInput(
        job_id="ftjob-1", fine_tuned_model="ft:tiny:default:demo:1", spec=FINE_TUNE, base_model=base,
        cache=folder / "cache", train_file=folder / "train.jsonl",
    )  # fmt: skip
    train(tuning, folder, LineWriter(lines), StopRequest())
    (folder / "artifacts").rename(out)
    (started,), (done,), steps = told(lines, Started), told(lines, Done), told(lines, Step)
    job = Job(
        id="ftjob-1", project_id="proj_1", model="tiny", spec=FINE_TUNE.model_dump(mode="json"), created_at=1.0,
        status=JobStatus.SUCCEEDED, resolved=started.resolved.model_dump(mode="json"), report=done.report, step=3,
        total_steps=3, attempt=1, fine_tuned_model=tuning.fine_tuned_model,
    )  # fmt: skip

    lines = io.StringIO()
    unpack(out / "adapter.zip", folder / "adapter")
    judging = EvaluationInput(
        job_id="evalrun_1", spec=evaluation_spec(), base_model=base, cache=folder / "cache",
        items_file=folder / "items.in", adapter=folder / "adapter",
    )  # fmt: skip
    evaluate(judging, folder, LineWriter(lines))
    for path in (folder / "artifacts").iterdir():
        path.rename(out / path.name)
    (scores,) = told(lines, Done)
    demo = DemoRun(
        job=fine_tuning_job(job, ["file-3", "file-4"]).model_dump(),
        run={"id": "evalrun_1", "hone": {"scores": scores.report}},
        steps=[{"step": step.step, **step.metrics} for step in steps],
        seconds={"fine-tuning": 12.3, "evaluating base and tuned": 4.5},
    )
    check_results(out)
    write_report(out, demo)
    return out, demo


def test_the_folder_holds_every_file_and_the_report_shows_the_pictures(finished):
    out, _ = finished
    present = {path.name for path in out.iterdir()}
    assert {*RESULTS, "adapter", "loss.png", "lengths.png", "codebleu.png", "manifest.json", "report.md"} <= present
    text = (out / "report.md").read_text()
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert pictures == ["lengths.png", "loss.png", "codebleu.png"]
    assert all((out / picture).read_bytes().startswith(b"\x89PNG") for picture in pictures)


PARTS = ("codebleu", "ngram", "weighted_ngram", "syntax", "dataflow")


def shown(value: float | None, interval: list[float] | None, form: str) -> str:
    told = "-" if value is None else form.format(value)
    return told if interval is None else f"{told} [{form.format(interval[0])} to {form.format(interval[1])}]"


def test_the_report_holds_the_scores_and_the_model_in_numbers(finished):
    out, demo = finished
    text = (out / "report.md").read_text()
    scores = json.loads((out / "scores.json").read_text())["criteria"][0]
    for name, corpus in (("base", scores["base"]), ("tuned", scores["model"])):
        row = next(line for line in text.split("## Evaluation")[1].splitlines() if line.startswith(f"| {name} |"))
        cells = [cell.strip() for cell in row.strip("|").split("|")][1:]
        parts = [(corpus[part], corpus["intervals"][part]) for part in PARTS]
        assert cells == [shown(value, interval, "{:.3f}") for value, interval in parts]
    row = next(line for line in text.splitlines() if line.startswith("| difference |"))
    found = [scores["difference"][part] for part in PARTS]
    cells = [cell.strip() for cell in row.strip("|").split("|")][1:]
    assert cells == [shown(entry["mean"], entry["interval"], "{:+.3f}") for entry in found]
    assert f"**{scores['verdict']['sentence']}**" in text
    assert "(95 % interval " in scores["verdict"]["sentence"]
    for name, corpus, usage in (("base", scores["base"], 1), ("tuned", scores["model"], 0)):
        ends = demo.scores["usage"][usage]["finish_reasons"]
        counts = [corpus[count] for count in ("empty", "unparsable", "refused", "truncated", "exact_match")]
        line = " | ".join(str(count) for count in [*counts, ends.get("stop", 0), ends.get("fence", 0)])
        assert f"| {name} | {line} |" in text
    model = demo.report["model"]
    assert f"| parameters | {model['parameters']:,} |" in text
    assert f"{model['trainable_parameters']:,} ({model['trainable_percent']:.2f} %)" in text
    assert "| in all | 17 |" in text


def test_the_report_shows_the_first_three_answers_as_they_came(finished):
    out, _ = finished
    shown = (out / "report.md").read_text().split("side by side")[1]
    items = [json.loads(line) for line in (out / "items.jsonl").read_text().splitlines()]
    assert len(items) == 12
    for item in items[:3]:
        assert item["item"]["instruction"] in shown
        assert item["item"]["completion"].rstrip() in shown
        assert item["sample"]["output_text"].rstrip() in shown
    assert shown.count("Reference:") == 3


def test_the_end_shows_the_table_and_the_paths(finished, capsys):
    out, demo = finished
    show(out, demo)
    printed = capsys.readouterr().out
    assert "CodeBLEU over 12 held-out functions" in printed
    assert str(out / "report.md") in printed
    assert "difference" in printed
    sentence = demo.scores["criteria"][0]["verdict"]["sentence"]
    assert sentence in " ".join(printed.split())


@pytest.mark.parametrize("name", RESULTS)
def test_a_missing_result_fails_the_demo(finished, tmp_path, name):
    out, _ = finished
    for kept in RESULTS:
        if kept != name:
            (tmp_path / kept).write_bytes((out / kept).read_bytes())
    with pytest.raises(DemoError, match=re.escape(name)):
        check_results(tmp_path)


def test_an_adapter_with_a_flipped_bit_fails_the_demo(finished, tmp_path):
    out, _ = finished
    for name in RESULTS:
        (tmp_path / name).write_bytes((out / name).read_bytes())
    data = bytearray((out / "adapter.zip").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "adapter.zip").write_bytes(data)
    with pytest.raises(BundleError):
        check_results(tmp_path)
