"""A run whose memory runs out goes on in a smaller way, with the losses that it would have had."""

from pathlib import Path

import pytest

from core.specs import DataSpec, Hyperparameters, LoraSpec, TrainingSpec
from tests.worker import dying
from tests.worker.dying import Instant, Run
from tests.worker.test_train import make_job
from worker.protocol import Event, ExitCode, Failed, Replanned, TrainingInput

TRAINING = TrainingSpec(precision="float32", save_steps=2, eval_steps=3, max_steps=6)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> TrainingInput:
    """Six steps of 8 samples, each one pass of some 300 tokens."""
    made = make_job(
        tmp_path_factory.mktemp("job"), tiny_llama, training=TRAINING, data=DataSpec(validation_fraction=0.2)
    )
    return made.model_copy(
        update={"spec": made.spec.model_copy(update={"hyperparameters": Hyperparameters(n_epochs=2, batch_size=8)})}
    )


@pytest.fixture(scope="module")
def whole(job: TrainingInput, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return dying.train(job, tmp_path_factory.mktemp("whole") / "out")


@pytest.fixture(scope="module")
def squeezed(job: TrainingInput, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same run where no pass of more than 150 tokens fits."""
    return dying.train(job, tmp_path_factory.mktemp("squeezed") / "out", Instant("out of memory", 150))


def of(run: Run, kind: type) -> list:
    return [line for line in run.lines if isinstance(line, kind)]


def test_the_step_is_done_again_with_the_loss_of_the_same_batch(whole: Run, squeezed: Run):
    assert (whole.code, squeezed.code) == (ExitCode.DONE, ExitCode.DONE)
    assert squeezed.losses == pytest.approx(whole.losses, rel=1e-5)
    assert squeezed.valid_losses == pytest.approx(whole.valid_losses, rel=1e-5)


def test_it_says_so_and_tells_the_plan_that_it_goes_on_by(squeezed: Run):
    plans = [line.resolved.plan for line in of(squeezed, Replanned)]
    assert plans
    assert plans[-1].pass_tokens <= 150
    assert [plan.pass_tokens for plan in plans] == sorted((plan.pass_tokens for plan in plans), reverse=True)
    warnings = [line.message for line in of(squeezed, Event) if line.level == "warn"]
    assert len(warnings) == len(plans)
    assert all(message.startswith("The memory ran out in a pass of ") for message in warnings)
    assert squeezed.lines[-1].report["run"]["memory"]["largest_pass_tokens"] <= plans[-1].pass_tokens


def test_a_restart_goes_on_by_that_plan_without_running_out_again(job: TrainingInput, squeezed: Run, tmp_path: Path):
    again = job.model_copy(
        update={"resume_from": squeezed.out / "checkpoint-4", "plan": of(squeezed, Replanned)[-1].resolved.plan}
    )
    resumed = dying.train(again, tmp_path / "out", Instant("out of memory", 150))
    assert resumed.code == ExitCode.DONE
    assert not of(resumed, Replanned)
    assert resumed.losses == {step: loss for step, loss in squeezed.losses.items() if step > 4}


def test_when_not_even_one_sample_fits_the_job_fails_by_name(job: TrainingInput, tmp_path: Path):
    failed = dying.train(job, tmp_path / "out", Instant("out of memory", 1))
    assert failed.code == ExitCode.FAILED
    assert isinstance(failed.lines[-1], Failed)
    assert (failed.lines[-1].code, failed.lines[-1].param) == ("out_of_memory", "hone.data.max_seq_length")
    assert of(failed, Replanned)[-1].resolved.plan.keep == {"all": 0, "attention": 0, "input": 2}


def test_off_the_fast_path_blocks_start_to_recompute(job: TrainingInput, tmp_path: Path, tiny_llama: Path):
    slow = make_job(
        tmp_path,
        tiny_llama,
        lora=LoraSpec(dropout=0.1),
        training=TRAINING.model_copy(update={"max_steps": 2, "microbatch_size": 1}),
    )
    whole = dying.train(slow, tmp_path / "whole")
    squeezed = dying.train(slow, tmp_path / "squeezed", Instant("out of memory without recomputing", 0))
    assert (whole.code, squeezed.code) == (ExitCode.DONE, ExitCode.DONE)
    assert squeezed.losses == pytest.approx(whole.losses, rel=1e-5)
    last = of(squeezed, Replanned)[-1].resolved
    assert (last.gradient_checkpointing, last.plan.keep["input"]) == (True, 2)
