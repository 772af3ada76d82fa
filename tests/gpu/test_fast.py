"""The Triton kernels against plain torch, and the fast path against the eager one."""

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit

from tests.worker.test_train import TRAINING, make_job, run
from worker.fast import ops, reference
from worker.protocol import Event, ExitCode

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")]


@pytest.fixture(autouse=True)
def on_the_gpu():
    torch.manual_seed(0)
    with torch.device("cuda"):
        yield


@pytest.mark.parametrize("width", [576, 4096, 8192])
def test_rms_norm(width):
    rows = 37
    x, weight, residual = torch.randn(rows, width), torch.randn(width), torch.randn(rows, width)
    grad, out = torch.randn(rows, width + 64)[:, :width], torch.empty(rows, width + 64)[:, :width]
    scale = ops.rms_norm_forward(x, weight, 1e-5, out)
    want = torch.empty(rows, width)
    want_scale = reference.rms_norm_forward(x, weight, 1e-5, want)
    torch.testing.assert_close(out, want)
    torch.testing.assert_close(scale, want_scale)
    torch.testing.assert_close(
        ops.rms_norm_backward(grad, x, weight, scale, residual),
        reference.rms_norm_backward(grad, x, weight, scale, residual),
    )


@pytest.mark.parametrize(("heads", "size"), [(12, 64), (40, 128), (3, 16)])
@pytest.mark.parametrize("back", [False, True])
def test_rotation(heads, size, back):
    qkv = torch.randn(29, (heads + 2) * size)[:, : heads * size]
    cos, sin = (torch.randn(29, size // 2).repeat(1, 2) for _ in range(2))
    out, want = torch.empty(29, heads * size), torch.empty(29, heads * size)
    ops.rotate(qkv, out, cos, sin, back=back)
    reference.rotate(qkv, want, cos, sin, -1.0 if back else 1.0)
    torch.testing.assert_close(out, want)
    ops.rotate(qkv, qkv, cos, sin, back=back)
    torch.testing.assert_close(qkv, want)


@pytest.mark.parametrize("width", [64, 1536, 11008])
def test_swiglu(width):
    gate_up, grad = torch.randn(31, 2 * width), torch.randn(31, width + 64)[:, :width]
    out, want = torch.empty(31, width + 64)[:, :width], torch.empty(31, width)
    ops.swiglu_forward(gate_up, out)
    reference.swiglu_forward(gate_up, want)
    torch.testing.assert_close(out, want)
    copy, product, want_product = gate_up.clone(), torch.empty(31, width), torch.empty(31, width)
    ops.swiglu_backward_(grad, gate_up, product)
    reference.swiglu_backward_(grad, copy, want_product)
    torch.testing.assert_close(gate_up, copy)
    torch.testing.assert_close(product, want_product)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_dequantization_is_bitsandbytes_own(nested, kind):
    weights, adapter = torch.randn(96, 576, dtype=torch.bfloat16), torch.randn(96, 24, dtype=torch.bfloat16)
    packed, state = quantize_4bit(weights, blocksize=64, compress_statistics=nested, quant_type=kind)
    out = torch.zeros(96, 640, dtype=torch.bfloat16)
    ops.dequantize(packed, state, out, adapter, 600)
    want = dequantize_4bit(packed, state)
    torch.testing.assert_close(out[:, :576], want, rtol=1e-2, atol=0)
    assert (out[:, :576] != want).float().mean() < 0.01
    assert torch.equal(out[:, 600:624], adapter)
    assert not out[:, 576:600].any()
    assert not out[:, 624:].any()


@pytest.mark.parametrize("words", [300, 32_000, 49_152])
def test_cross_entropy(words):
    logits, labels = torch.randn(23, words) * 4, torch.randint(0, words, (23,))
    labels[0] = logits[0].argmax()
    copy = logits.clone()
    losses, hits = ops.cross_entropy_(logits, labels)
    want, want_hits = reference.cross_entropy_(copy, labels)
    torch.testing.assert_close(losses, want)
    torch.testing.assert_close(hits, want_hits)
    torch.testing.assert_close(logits, copy)
    assert hits[0] == 1


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_fast_path_follows_the_eager_one(checkpointing, tiny_llama, tmp_path):
    training = TRAINING.model_copy(
        update={"precision": "bfloat16", "max_steps": 10, "gradient_checkpointing": checkpointing}
    )
    fast = run(make_job(tmp_path, tiny_llama, training=training), tmp_path / "fast")
    assert fast.code == ExitCode.DONE, fast.log[-3000:]
    assert not [line for line in fast.of(Event) if "fast path" in line.message]
    slow = training.model_copy(update={"fast_path": False})
    eager = run(make_job(tmp_path, tiny_llama, training=slow), tmp_path / "eager")
    for step, loss in eager.losses.items():
        assert fast.losses[step] == pytest.approx(loss, rel=5e-3)
