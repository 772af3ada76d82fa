"""Preference tuning of a real tiny Llama, in processes of its own."""

import csv
import json
import math
import signal
import zipfile
from pathlib import Path

import pytest
from safetensors.torch import load_file

from core.specs import DataSpec, DpoSpec, Hyperparameters, LoraSpec, TrainingSpec
from tests.worker import dying
from tests.worker.dying import Instant, Run
from tests.worker.test_train import make_job
from worker.progress import REWARDS
from worker.protocol import Done, ExitCode, Failed, Started, Step, TrainingInput

TRAINING = TrainingSpec(precision="float32", microbatch_size=4, save_steps=4, eval_steps=4, learning_rate=1e-3)


def pairs(count: int = 40) -> str:
    """Questions with a good answer and a bad one, of different lengths."""
    return "\n".join(
        json.dumps(
            {
                "input": {"messages": [{"role": "user", "content": f"say {number}" + " please" * (number % 5)}]},
                "preferred_output": [{"role": "assistant", "content": f"def f(x):\n    return {number}"}],
                "non_preferred_output": [{"role": "assistant", "content": "import os\n" * (1 + number % 3)}],
            }
        )
        for number in range(count)
    )


def make_pairs(folder: Path, model: Path, **changes: object) -> TrainingInput:
    """A job of 10 steps over 40 pairs."""
    job = make_job(folder, model, training=TRAINING, data=DataSpec(validation_fraction=0.1), **changes)
    job.train_file.write_text(pairs())
    hyperparameters = Hyperparameters(n_epochs=2, batch_size=8)
    return change(job, dpo=DpoSpec(), hyperparameters=hyperparameters)


def change(job: TrainingInput, **spec: object) -> TrainingInput:
    return job.model_copy(update={"spec": job.spec.model_copy(update=spec)})


def of(run: Run, kind: type) -> list:
    return [line for line in run.lines if isinstance(line, kind)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Run:
    folder = tmp_path_factory.mktemp("preferences")
    ended = dying.train(make_pairs(folder, tiny_llama), folder / "out")
    assert ended.code == ExitCode.DONE
    with zipfile.ZipFile(ended.out / "artifacts" / "adapter.zip") as archive:
        archive.extractall(folder / "adapter")
    return ended


def figures(ended: Run, name: str) -> dict[int, float]:
    return {line.step: line.metrics[name] for line in of(ended, Step) if name in line.metrics}


def test_it_starts_without_a_preference_and_learns_one(trained: Run) -> None:
    valid = figures(trained, "valid_loss")
    assert sorted(valid) == [0, 4, 8, 10]
    assert valid[0] == pytest.approx(math.log(2), abs=1e-6), "a fresh adapter is its own reference"
    assert figures(trained, "valid_reward_margin")[0] == pytest.approx(0, abs=1e-6)
    assert valid[10] < 0.5
    assert figures(trained, "valid_reward_accuracy")[10] == 1
    losses = trained.losses
    assert sorted(losses) == list(range(1, 11))
    assert losses[1] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[10] < 0.5
    margins = figures(trained, "reward_margin")
    for step, chosen in figures(trained, "reward_chosen").items():
        assert margins[step] == pytest.approx(chosen - figures(trained, "reward_rejected")[step], abs=1e-5)


def test_it_says_what_was_chosen_and_leaves_what_any_fine_tune_leaves(trained: Run) -> None:
    started = of(trained, Started)[0]
    assert (started.resolved.beta, started.resolved.reasons["dpo.beta"]) == (0.1, "what the paper of DPO uses")
    assert started.report["dataset"]["train_samples"] == 36
    assert isinstance(trained.lines[-1], Done)
    with (trained.out / "artifacts" / "step_metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(1, 11))
    assert tuple(rows[0])[-len(REWARDS) :] == REWARDS
    assert float(rows[-1]["reward_accuracy"]) == 1
    names = {path.name for path in (trained.out.parent / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "manifest.json", "loss.png"} <= names
    assert "ref" not in names
    weights = load_file(trained.out.parent / "adapter" / "adapter_model.safetensors")
    assert {str(weight.dtype) for weight in weights.values()} == {"torch.float32"}
    assert any(float(weight.abs().max()) > 0 for name, weight in weights.items() if "lora_B" in name)
    assert not [name for name in weights if "ref" in name]
    manifest = json.loads((trained.out.parent / "adapter" / "manifest.json").read_text())
    assert manifest["spec"]["dpo"] == {"beta": "auto"}


def test_a_run_that_goes_on_from_a_checkpoint_has_the_figures_of_one_that_never_stopped(
    trained: Run, tiny_llama: Path, tmp_path: Path
) -> None:
    job = make_pairs(tmp_path, tiny_llama).model_copy(update={"resume_from": trained.out / "checkpoint-4"})
    resumed = dying.train(job, tmp_path / "out")
    assert resumed.code == ExitCode.DONE
    assert of(resumed, Started)[0].step == 4
    assert resumed.losses == {step: loss for step, loss in trained.losses.items() if step > 4}
    for name in ("valid_loss", "reward_chosen", "reward_margin"):
        whole = figures(trained, name)
        assert figures(resumed, name) == {step: value for step, value in whole.items() if step > 4}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_stopped_or_killed_in_the_middle_it_goes_on_with_the_same_curve(
    number: signal.Signals, trained: Run, tiny_llama: Path, tmp_path: Path
) -> None:
    job = make_pairs(tmp_path, tiny_llama)
    first = dying.train(job, tmp_path / "first", Instant("step", 6, number))
    stopped = number == signal.SIGTERM
    assert first.code == (ExitCode.STOPPED if stopped else -number)
    assert first.saved == ([4, 6] if stopped else [4])
    newest = tmp_path / "first" / f"checkpoint-{first.saved[-1]}"
    last = dying.train(job.model_copy(update={"resume_from": newest}), tmp_path / "last")
    assert last.code == ExitCode.DONE
    assert {**first.losses, **last.losses} == trained.losses
    assert {**first.valid_losses, **last.valid_losses} == trained.valid_losses


def test_dropout_and_a_beta_of_ones_own_are_used(tiny_llama: Path, tmp_path: Path) -> None:
    job = make_pairs(tmp_path, tiny_llama, lora=LoraSpec(r=4, alpha=8, dropout=0.1))
    training = TRAINING.model_copy(update={"max_steps": 2})
    hone = job.spec.hone.model_copy(update={"training": training})
    ended = dying.train(change(job, dpo=DpoSpec(beta=1.5), hone=hone), tmp_path / "out")
    assert ended.code == ExitCode.DONE
    assert of(ended, Started)[0].resolved.beta == 1.5
    assert figures(ended, "reward_margin")[1] == pytest.approx(0, abs=1e-6), "dropout before B = 0 changes nothing"
    assert figures(ended, "reward_margin")[2] != 0


def test_samples_that_are_no_pairs_are_refused_by_name(tiny_llama: Path, tmp_path: Path) -> None:
    job = make_job(tmp_path, tiny_llama)
    ended = dying.train(change(job, dpo=DpoSpec()), tmp_path / "out")
    failed = of(ended, Failed)[0]
    assert (ended.code, failed.code, failed.param) == (ExitCode.FAILED, "wrong_format", "training_file")
