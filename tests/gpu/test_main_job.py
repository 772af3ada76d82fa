"""The worker's own programs on a CUDA GPU: what only a GPU can show."""

import zipfile

import pytest
import torch

from core.specs import QuantizationSpec
from tests.worker.test_train import TRAINING, make_job, run
from worker.protocol import Done, ExitCode, Started, Step

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")]

BFLOAT16 = TRAINING.model_copy(update={"precision": "bfloat16", "max_steps": 10})


@pytest.mark.parametrize("optimizer", ["adamw_torch_fused", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit"])
def test_each_optimizer_trains(optimizer, tiny_llama, tmp_path):
    training = BFLOAT16.model_copy(update={"optimizer": optimizer})
    ended = run(make_job(tmp_path, tiny_llama, training=training), tmp_path / "out")
    assert ended.code == ExitCode.DONE, ended.log[-3000:]
    assert ended.losses[10] < ended.losses[1]
    assert ended.of(Done)[0].report["hardware"]["device"] == "cuda"


@pytest.mark.parametrize("precision", ["bfloat16", "float32", "float16"])
def test_each_precision_follows_the_curve_of_float32(precision, tiny_llama, tmp_path):
    runs = {}
    for each in ("float32", precision):
        folder = tmp_path / each
        folder.mkdir(exist_ok=True)
        training = BFLOAT16.model_copy(update={"precision": each})
        runs[each] = run(make_job(folder, tiny_llama, training=training), folder / "out")
        assert runs[each].code == ExitCode.DONE, runs[each].log[-3000:]
    for step, loss in runs["float32"].losses.items():
        assert runs[precision].losses[step] == pytest.approx(loss, rel=5e-3)


def test_a_resumed_run_follows_the_one_that_never_stopped(tiny_llama, tmp_path):
    whole = run(make_job(tmp_path, tiny_llama, training=BFLOAT16), tmp_path / "whole")
    job = make_job(tmp_path, tiny_llama, training=BFLOAT16, resume_from=tmp_path / "whole" / "checkpoint-4")
    resumed = run(job, tmp_path / "resumed")
    assert resumed.of(Started)[0].step == 4
    for step, loss in resumed.losses.items():
        assert loss == pytest.approx(whole.losses[step], rel=1e-3)


def test_dense_training_without_quantization(tiny_llama, tmp_path):
    job = make_job(tmp_path, tiny_llama, training=BFLOAT16, quantization=QuantizationSpec(type="none"))
    ended = run(job, tmp_path / "out")
    assert ended.code == ExitCode.DONE, ended.log[-3000:]
    assert {line.step for line in ended.of(Step)} >= set(range(1, 11))
    with zipfile.ZipFile(ended.out / "artifacts" / "adapter.zip") as archive:
        assert archive.testzip() is None
