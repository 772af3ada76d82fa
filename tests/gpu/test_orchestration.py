"""On a real GPU: the warm process, what it measures, and several GPUs where there are some."""

from pathlib import Path

import pytest
import torch

from core.specs import DataSpec, LoraSpec, TrainingSpec
from tests.worker.test_train import make_job
from tests.worker.test_train import run as run_alone
from tests.worker.test_warm import make, run
from worker.host import Host, warm_command
from worker.protocol import Done, ExitCode

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")]

TRAINING = TrainingSpec(precision="bfloat16", max_steps=4, save_steps=4, eval_steps=4)


def test_a_warm_job_has_the_losses_of_a_fresh_process(tiny_llama: Path, tmp_path: Path) -> None:
    host = Host(warm_command(), idle_seconds=600)
    job = make(tmp_path / "job", tiny_llama, training=TRAINING)
    try:
        cold, warm = (run(host, job, tmp_path / f"run-{number}") for number in range(2))
    finally:
        host.close()
    assert (cold.code, warm.code, warm.pid) == (ExitCode.DONE, ExitCode.DONE, cold.pid)
    assert warm.losses == cold.losses
    assert warm.adapter == cold.adapter


def test_the_memory_that_a_warm_job_measures_is_its_own(tiny_llama: Path, tmp_path: Path) -> None:
    host = Host(warm_command(), idle_seconds=600)
    large = make(tmp_path / "large", tiny_llama, training=TRAINING, lora=LoraSpec(r=256))
    small = make(tmp_path / "small", tiny_llama, training=TRAINING, lora=LoraSpec(r=1))
    try:
        peaks = [
            run(host, job, tmp_path / f"run-{number}").of(Done)[0].report["run"]["peak_memory"]
            for number, job in enumerate((large, small))
        ]
    finally:
        host.close()
    assert peaks[1] < peaks[0]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs: HONE_TEST_GPU=0,1")
def test_two_gpus_have_the_losses_of_one(tiny_llama: Path, tmp_path: Path) -> None:
    jobs = {}
    for gpus in (1, 2):
        (tmp_path / str(gpus)).mkdir()
        training = TRAINING.model_copy(update={"gpus": gpus})
        job = make_job(tmp_path / str(gpus), tiny_llama, training=training, data=DataSpec(validation_fraction=0.1))
        jobs[gpus] = run_alone(job, tmp_path / f"out-{gpus}")
        assert jobs[gpus].code == ExitCode.DONE, jobs[gpus].log[-3000:]
    assert jobs[2].losses == pytest.approx(jobs[1].losses, rel=5e-3)
