"""CodeBLEU while training, the best step's adapter, early stopping: the same decisions whatever happens to a run."""

import csv
import json
import signal
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from core.errors import TrainingError
from core.specs import DataSpec, EvaluationDuringTrainingSpec, HoneSpec, Hyperparameters, TrainingSpec
from tests.worker import dying
from tests.worker.dying import Instant, Run
from tests.worker.test_exact_resume import assert_same, go_on
from tests.worker.test_train import make_job
from worker.protocol import Done, Event, ExitCode, Step, TrainingInput
from worker.selection import BEST, Point, best_of, points, without_improvement

TRAINING = TrainingSpec(
    precision="float32", microbatch_size=4, save_steps=2, eval_steps=3, learning_rate=0.01, lr_scheduler="constant"
)
WATCHED = {"codebleu_steps": 2, "codebleu_samples": 4, "codebleu_max_tokens": 12}


def make(folder: Path, base: Path, max_steps: int = 6, **evaluation) -> TrainingInput:
    """The validation answers are unlike the training's, so their loss rises: step 3's is the best, 6's is worse."""
    path = folder / "validation.jsonl"
    rows = [{"instruction": f"{n}", "output": "ZQXJ KWVY QZJX " * 3} for n in range(4)]
    path.write_text("\n".join(map(json.dumps, rows)))
    made = make_job(folder, base, training=TRAINING.model_copy(update={"max_steps": max_steps}), validation_file=path)
    hone = made.spec.hone.model_copy(update={"evaluation": EvaluationDuringTrainingSpec.model_validate(evaluation)})
    hyperparameters = Hyperparameters(n_epochs=3, batch_size=8)
    spec = made.spec.model_copy(update={"hone": hone, "hyperparameters": hyperparameters})
    return made.model_copy(update={"spec": spec})


def figures(run: Run, name: str) -> dict[int, float]:
    return {line.step: line.metrics[name] for line in run.lines if isinstance(line, Step) and name in line.metrics}


def adapter(run: Run, folder: Path) -> dict[str, torch.Tensor]:
    with zipfile.ZipFile(run.out / "artifacts" / "adapter.zip") as archive:
        archive.extractall(folder)
    return load_file(folder / "adapter_model.safetensors")


def report(run: Run) -> dict:
    (done,) = (line for line in run.lines if isinstance(line, Done))
    return done.report["run"]


def messages(run: Run) -> list[str]:
    return [line.message for line in run.lines if isinstance(line, Event)]


def same_tensors(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def plain(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same training with nothing watched."""
    folder = tmp_path_factory.mktemp("plain")
    run = dying.train(make(folder, tiny_llama), folder / "out")
    assert run.code == ExitCode.DONE
    return run


@pytest.fixture(scope="module")
def watched_job(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingInput:
    return make(tmp_path_factory.mktemp("watched"), tiny_llama, keep="best_valid_loss", **WATCHED)


@pytest.fixture(scope="module")
def watched(watched_job: TrainingInput, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """CodeBLEU on the way, and the adapter of the best validation loss."""
    run = dying.train(watched_job, tmp_path_factory.mktemp("watched-run") / "out")
    assert run.code == ExitCode.DONE
    return run


def assert_rises(run: Run) -> None:
    assert run.valid_losses[3] + 0.02 < run.valid_losses[6], "the validation loss was meant to rise"


def test_codebleu_is_measured_on_the_way_and_changes_no_loss(plain: Run, watched: Run):
    scores = figures(watched, "codebleu")
    assert sorted(scores) == [0, 2, 4, 6]
    assert all(0 <= score <= 1 for score in scores.values())
    assert watched.losses == plain.losses
    assert {step: watched.valid_losses[step] for step in plain.valid_losses} == plain.valid_losses
    assert sorted(watched.valid_losses) == [0, 2, 3, 4, 6], "CodeBLEU has a loss beside it"
    with (watched.out / "artifacts" / "step_metrics.csv").open() as file:
        rows = {int(row["step"]): row["codebleu"] for row in csv.DictReader(file)}
    assert {step: float(value) for step, value in rows.items() if value} == {
        step: score for step, score in scores.items() if step
    }
    with zipfile.ZipFile(watched.out / "artifacts" / "adapter.zip") as archive:
        assert archive.read("codebleu_steps.png").startswith(b"\x89PNG")
    with zipfile.ZipFile(plain.out / "artifacts" / "adapter.zip") as archive:
        assert "codebleu_steps.png" not in archive.namelist()


def test_the_adapter_of_the_best_step_is_the_result(plain: Run, watched: Run, tmp_path: Path):
    assert_rises(plain)
    losses = {step: loss for step, loss in watched.valid_losses.items() if step}
    best = min(losses, key=lambda step: (losses[step], step))
    assert best < 6
    assert (report(watched)["kept_step"], report(watched)["last_step"]) == (best, 6)
    kept = f"Keeping the adapter of step {best}, whose validation loss"
    assert any(message.startswith(kept) for message in messages(watched))
    assert (report(plain)["kept_step"], report(plain)["last_step"]) == (6, 6)
    kept, last = adapter(watched, tmp_path / "kept"), adapter(plain, tmp_path / "last")
    assert not same_tensors(kept, last)
    assert same_tensors(last, load_file(plain.out / "checkpoint-6" / "adapter_model.safetensors"))
    in_checkpoint = load_file(watched.out / "checkpoint-6" / BEST)
    assert same_tensors(kept, {name.replace(".default", ""): value for name, value in in_checkpoint.items()})


@pytest.mark.parametrize(
    "instant",
    [Instant("step", 5), Instant("save", 4), Instant("artifacts", 6), Instant("step", 4, signal.SIGTERM)],
    ids=["after the best", "in a save", "at the end", "told to stop"],
)
def test_a_killed_run_keeps_the_same_step(instant: Instant, watched_job: TrainingInput, watched: Run, tmp_path: Path):
    killed = go_on(watched_job, tmp_path / "killed", [], instant)
    assert killed.code == (ExitCode.STOPPED if instant.number is signal.SIGTERM else -signal.SIGKILL)
    last = go_on(watched_job, tmp_path / "last", [killed])
    assert last.code == ExitCode.DONE
    assert_same(last, watched)
    scores = figures(killed, "codebleu") | figures(last, "codebleu")
    assert scores == figures(watched, "codebleu")
    assert report(last)["kept_step"] == report(watched)["kept_step"]
    assert same_tensors(adapter(last, tmp_path / "one"), adapter(watched, tmp_path / "other"))


@pytest.fixture(scope="module")
def stopping_job(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingInput:
    folder = tmp_path_factory.mktemp("stopping")
    return make(folder, tiny_llama, max_steps=12, early_stopping="valid_loss", patience=1, keep="best_valid_loss")


@pytest.fixture(scope="module")
def stopped(stopping_job: TrainingInput, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = dying.train(stopping_job, tmp_path_factory.mktemp("stopped") / "out")
    assert run.code == ExitCode.DONE
    return run


def test_training_stops_when_the_loss_has_not_improved(plain: Run, stopped: Run):
    assert_rises(plain)
    assert sorted(stopped.losses) == [1, 2, 3, 4, 5, 6]
    assert stopped.losses == {number: plain.losses[number] for number in stopped.losses}
    assert any(message.startswith("Stopped early at step 6: the validation loss") for message in messages(stopped))
    assert (report(stopped)["last_step"], report(stopped)["kept_step"]) == (6, 3)
    state = json.loads((stopped.out / "checkpoint-6" / "trainer_state.json").read_text())
    assert state["global_step"] == 6


@pytest.mark.parametrize("where", ["artifacts", "step"])
def test_a_run_that_was_killed_as_it_stopped_stops_there_again(where, stopping_job, stopped: Run, tmp_path: Path):
    killed = go_on(stopping_job, tmp_path / "killed", [], Instant(where, 6))
    assert killed.code == -signal.SIGKILL
    last = go_on(stopping_job, tmp_path / "last", [killed])
    assert last.code == ExitCode.DONE
    assert max([*last.losses, *killed.losses]) == 6
    if where == "artifacts":
        assert last.losses == {}, "it had stopped already"
    assert report(last)["last_step"] == 6
    assert same_tensors(adapter(last, tmp_path / "one"), adapter(stopped, tmp_path / "other"))
    rows = [(run.out / "artifacts" / "step_metrics.csv").read_text().splitlines() for run in (last, stopped)]
    assert [row.split(",")[:7] for row in rows[0]] == [row.split(",")[:7] for row in rows[1]]


def test_options_that_need_validation_data_are_refused_without(tiny_llama: Path, tmp_path: Path):
    job = make(tmp_path, tiny_llama, keep="best_valid_loss").model_copy(update={"validation_file": None})
    hone = job.spec.hone.model_copy(update={"data": DataSpec(validation_fraction=0)})
    job = job.model_copy(update={"spec": job.spec.model_copy(update={"hone": hone})})
    run = dying.train(job, tmp_path / "out")
    assert run.code == ExitCode.FAILED
    assert run.lines[-1].param == "hone.evaluation.keep"
    assert "needs validation data" in run.lines[-1].message


LOG = [
    {"step": 0, "eval_loss": 0.1},
    {"step": 2, "loss": 1.0},
    {"step": 2, "eval_loss": 2.0},
    {"step": 4, "eval_loss": 1.5},
    {"step": 4, "eval_codebleu": 0.3},
    {"step": 6, "eval_loss": 1.5},
    {"step": 8, "eval_codebleu": 0.2},
    {"step": 8, "eval_loss": 1.7},
]


def test_decisions_are_read_off_the_log():
    losses = points(LOG, "valid_loss")
    assert losses == [Point(2, 2.0), Point(4, 1.5), Point(6, 1.5), Point(8, 1.7)]
    assert best_of(losses, "valid_loss") == Point(4, 1.5), "of equal ones the first"
    assert without_improvement(losses, "valid_loss") == 2
    assert best_of(points(LOG, "codebleu"), "codebleu") == Point(4, 0.3)
    assert without_improvement(points(LOG, "codebleu"), "codebleu") == 1
    assert best_of([], "codebleu") is None
    assert without_improvement([], "codebleu") == 0


@pytest.mark.parametrize("options", [{"keep": "best_codebleu"}, {"early_stopping": "codebleu"}, {"patience": 0}])
def test_options_that_contradict_each_other_are_refused(options):
    with pytest.raises(ValueError, match=r"codebleu_steps|greater than"):
        EvaluationDuringTrainingSpec.model_validate(options)
    assert HoneSpec().evaluation.needs_validation is None


def test_a_prompt_that_leaves_no_room_is_not_asked(tiny_llama: Path):
    from transformers import AutoTokenizer

    from worker.prompts import Encoded
    from worker.step_scores import Question, questions

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    spec = EvaluationDuringTrainingSpec(codebleu_steps=1, codebleu_max_tokens=50, codebleu_samples=2)
    code = tokenizer.encode("```python\nx = 1\n```")
    short = Encoded([5, 6, *code, 7], [False, False] + [True] * len(code) + [False])
    long = Encoded([5] * 480 + code, [False] * 480 + [True] * len(code))
    found = questions([long, short, short, short], tokenizer, spec, 512)
    assert found == [Question([5, 6], "x = 1\n")] * 2
    with pytest.raises(TrainingError, match="No validation sample's prompt leaves 50"):
        questions([long], tokenizer, spec, 512)
