"""Two processes that train one job together: the losses of one, and one end however a process ends."""

import json
import signal
from pathlib import Path

import psutil
import pytest
import torch

from core.specs import DataSpec, EvaluationDuringTrainingSpec, Hyperparameters, TrainingSpec
from tests.waiting import wait_for
from tests.worker import dying
from tests.worker.dying import Instant, Run
from tests.worker.test_train import make_job, start
from worker.protocol import Done, ExitCode, Replanned, Step, TrainingInput, parse_line
from worker.ranks import Ranks

TRAINING = TrainingSpec(precision="float32", save_steps=2, eval_steps=3, max_steps=4)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> TrainingInput:
    """Four steps of 9 samples: the shares differ in size."""
    made = make_job(
        tmp_path_factory.mktemp("job"), tiny_llama, training=TRAINING, data=DataSpec(validation_fraction=0.2)
    )
    scored = EvaluationDuringTrainingSpec(codebleu_steps=2, codebleu_samples=2, codebleu_max_tokens=8)
    update = {
        "hyperparameters": Hyperparameters(n_epochs=2, batch_size=9),
        "hone": made.spec.hone.model_copy(update={"evaluation": scored}),
    }
    return made.model_copy(update={"spec": made.spec.model_copy(update=update)})


def shared(job: TrainingInput, **training) -> TrainingInput:
    hone = job.spec.hone
    changed = hone.model_copy(update={"training": hone.training.model_copy(update={"gpus": 2} | training)})
    return job.model_copy(update={"spec": job.spec.model_copy(update={"hone": changed})})


@pytest.fixture(scope="module")
def one(job: TrainingInput, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return dying.train(job, tmp_path_factory.mktemp("one") / "out")


@pytest.fixture(scope="module")
def two(job: TrainingInput, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return dying.train(shared(job), tmp_path_factory.mktemp("two") / "out")


def accuracies(run: Run) -> dict[int, float]:
    return {
        line.step: line.metrics["train_accuracy"]
        for line in run.lines
        if isinstance(line, Step) and "train_accuracy" in line.metrics
    }


def test_two_have_the_losses_of_one(one: Run, two: Run):
    assert (one.code, two.code) == (ExitCode.DONE, ExitCode.DONE)
    assert sorted(two.losses) == [1, 2, 3, 4]
    assert two.losses == pytest.approx(one.losses, rel=1e-5)
    assert two.valid_losses == pytest.approx(one.valid_losses, rel=1e-5)
    assert accuracies(two) == pytest.approx(accuracies(one), rel=1e-5)
    assert two.lines[-1].trained_tokens == one.lines[-1].trained_tokens


def test_codebleu_is_measured_once_for_both(one: Run, two: Run):
    for run in (one, two):
        told = [line.step for line in run.lines if isinstance(line, Step) and "codebleu" in line.metrics]
        assert told == [0, 2, 4]


def test_only_the_first_tells_saves_and_leaves_artifacts(two: Run):
    assert two.saved == [2, 4]
    assert sum(isinstance(line, Done) for line in two.lines) == 1
    assert (two.out / "artifacts" / "adapter.zip").exists()
    assert not list(two.out.glob("rank-1/**/*.safetensors"))
    manifest = json.loads((two.out / "checkpoint-4" / "manifest.json").read_text())
    assert manifest["step"] == 4


def test_memory_that_runs_out_in_one_makes_both_step_down(job: TrainingInput, one: Run, tmp_path: Path):
    squeezed = dying.train(shared(job, max_steps=2), tmp_path / "out", Instant("out of memory", 100))
    assert squeezed.code == ExitCode.DONE
    assert [line for line in squeezed.lines if isinstance(line, Replanned)]
    assert squeezed.losses[1] == pytest.approx(one.losses[1], rel=1e-5)


def test_a_stop_that_one_hears_stops_both_after_the_same_step(job: TrainingInput, one: Run, tmp_path: Path):
    stopped = dying.train(shared(job), tmp_path / "out", Instant("step", 2, signal.SIGTERM))
    assert (stopped.code, stopped.saved[-1]) == (ExitCode.STOPPED, 2)
    last = dying.train(job.model_copy(update={"resume_from": stopped.out / "checkpoint-2"}), tmp_path / "last")
    assert last.code == ExitCode.DONE
    assert last.losses == pytest.approx({step: one.losses[step] for step in (3, 4)}, rel=1e-5)


def test_when_one_dies_the_job_breaks_off(job: TrainingInput, tmp_path: Path):
    process = start(shared(job, max_steps=5000, save_steps=5000, eval_steps=5000), tmp_path / "out")
    assert process.stdout is not None
    while not isinstance(parse_line(process.stdout.readline()), Step):
        pass
    family = psutil.Process(process.pid).children(recursive=True)
    other = next(child for child in family if "worker.ranks" in child.cmdline())
    other.kill()
    process.communicate(timeout=60)
    assert process.returncode not in (ExitCode.DONE, ExitCode.FAILED, ExitCode.STOPPED)
    wait_for(lambda: not other.is_running() or other.status() == psutil.STATUS_ZOMBIE)


def test_one_alone_asks_nobody():
    alone = Ranks()
    rows = [{"input_ids": [1], "labels": [1]}]
    assert alone.mine(rows) == rows
    assert alone.largest([3, 4]) == [3, 4]
    assert not alone.any(False)
    assert torch.equal(alone.sum(torch.ones(2)), torch.ones(2))


def test_shares_are_alike_and_whole():
    rows = [{"input_ids": [0] * length, "labels": [0] * length} for length in (9, 1, 5, 5, 8, 2, 4)]
    shares = []
    for rank in range(2):
        ranks = Ranks()
        ranks.rank, ranks.size = rank, 2
        shares.append(ranks.mine(rows))
    assert sorted(len(row["input_ids"]) for share in shares for row in share) == [1, 2, 4, 5, 5, 8, 9]
    assert [sum(len(row["input_ids"]) for row in share) for share in shares] == [17, 17]
