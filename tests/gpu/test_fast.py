"""The Triton kernels against plain torch, and the fast path against the eager one."""

import gc
import random
from itertools import accumulate

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from core.specs import LoraSpec
from tests.worker.test_train import TRAINING, make_job, run
from worker.environment import fast_fp8
from worker.fast import attention, cudnn, ops, reference
from worker.fast.attention import Row
from worker.fast.graphs import Graphs, Pass
from worker.fast.model import FastModel
from worker.protocol import Event, ExitCode
from worker.sequences import IGNORED, collate
from worker.trainer import add_adapter

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")]


@pytest.fixture(autouse=True)
def on_the_gpu():
    torch.manual_seed(0)
    with torch.device("cuda"):
        yield


def make_batch(rows, ignored=0):
    """Of samples' tokens, the first ones of each untrained."""
    batch = collate([{"input_ids": ids, "labels": [IGNORED] * ignored + ids[ignored:]} for ids in rows])
    return {name: x.cuda() if isinstance(x, torch.Tensor) else x for name, x in batch.items()}


def adapted(base):
    """With an adapter that does something."""
    model = add_adapter(base, LoraSpec(dropout=0.0), name="base", seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def make_model(folder):
    """In 4 bits, and adapted."""
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    base = LlamaForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, device_map="cuda", quantization_config=quantization
    )
    return adapted(base)


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
    wide, factors = torch.randn(rows, width + 64), torch.rand(64)
    for past, inner in ((residual, None), (None, None), (residual, wide[:, width:])):
        found = ops.rms_norm_backward(grad, x, weight, scale, past, inner, factors)
        wanted = reference.rms_norm_backward(grad, x, weight, scale, past, inner, factors)
        torch.testing.assert_close(found, wanted)


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
    gate_up = torch.randn(31, 2 * width)
    out, want = torch.empty(31, width + 64)[:, :width], torch.empty(31, width)
    ops.swiglu_forward(gate_up, out)
    reference.swiglu_forward(gate_up, want)
    torch.testing.assert_close(out, want)


@pytest.mark.parametrize(("width", "rank"), [(64, 16), (1536, 0), (1536, 64), (1536, 256), (11008, 16)])
def test_backward_swiglu(width, rank):
    rows = 1111
    gate_up, grad = torch.randn(rows, 2 * width), torch.randn(rows, width + 256)
    copy, a = gate_up.clone(), torch.randn(256, width)[:rank] / max(1, rank) ** 0.5
    total = ops.swiglu_backward_(grad[:, :width], gate_up, grad[:, width : width + rank], a)
    want = reference.swiglu_backward_(grad[:, :width], copy, grad[:, width : width + rank], a)
    torch.testing.assert_close(gate_up, copy, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(total, want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("wide", [24, 64])
def test_dequantization_is_bitsandbytes_own(nested, kind, wide):
    weights = torch.randn(96, 576, dtype=torch.bfloat16)
    adapter = torch.randn(96, wide, dtype=torch.bfloat16)[:, :24]
    packed, state = quantize_4bit(weights, blocksize=64, compress_statistics=nested, quant_type=kind)
    out = torch.zeros(96, 640, dtype=torch.bfloat16)
    ops.dequantize(packed, state, out, adapter, 600)
    want = dequantize_4bit(packed, state)
    torch.testing.assert_close(out[:, :576], want, rtol=1e-2, atol=0)
    assert (out[:, :576] != want).float().mean() < 0.01
    assert torch.equal(out[:, 600:624], adapter)
    assert not out[:, 576:600].any()
    assert not out[:, 624:].any()


@pytest.mark.parametrize("width", [64, 1536, 11008])
def test_rows_in_eight_bits(width):
    x = torch.randn(37, width + 64, dtype=torch.bfloat16)[:, :width]
    (found, scale), (want, want_scale) = ops.quantize_rows(x), reference.quantize_rows(x)
    torch.testing.assert_close(scale, want_scale)
    assert (found.float() != want.float()).float().mean() < 0.001  # a quotient rounded the other way
    torch.testing.assert_close(found.float() * scale, x.float(), rtol=0.07, atol=0.01)


@pytest.mark.skipif(not fast_fp8(), reason="needs Hopper")
def test_products_of_eight_bits():
    x, w = torch.randn(1000, 4096, dtype=torch.bfloat16), torch.randn(768, 4096, dtype=torch.bfloat16)
    quantized = *ops.quantize_rows(x), *ops.quantize_rows(w)
    found, want = ops.scaled_mm(*quantized).float(), reference.scaled_mm(*quantized)
    assert torch.linalg.norm(found - want) < 5e-3 * torch.linalg.norm(want)
    assert torch.linalg.norm(found - x.float() @ w.float().t()) < 0.05 * torch.linalg.norm(want)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("width", "extra"), [(576, 64), (4096, 64), (4096, 1024)])
def test_adding_a_product(width, extra, residual):
    y, past = torch.randn(333, width, dtype=torch.bfloat16), torch.randn(333, width, dtype=torch.bfloat16)
    left, right = torch.randn(333, 64 + extra)[:, 64:].bfloat16(), torch.randn(extra, width).bfloat16()
    out = torch.empty(333, width + 64, dtype=torch.bfloat16)[:, :width]
    found = ops.add_product(y, left, right.t(), past if residual else None, out)
    want = reference.add_product(y, left, right.t(), past if residual else None, torch.empty_like(y))
    torch.testing.assert_close(found, want, rtol=1e-2, atol=5e-2 * (extra / 64) ** 0.5)


@pytest.mark.skipif(not cudnn.available(torch.device("cuda:0")), reason="needs Hopper and nvidia-cudnn-frontend")
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize(("heads", "size"), [(9, 64), (8, 128)])
def test_attention_by_cudnn(heads, size, window):
    lengths = [5, 130, 1, 512, 64, 300]
    row = Row(torch.tensor([0, *accumulate(lengths)], dtype=torch.int32), lengths, max(lengths))
    widths = [heads * size] * 3

    def split(x):
        return tuple(part.unflatten(1, (-1, size)) for part in torch.split(x, widths, 1))

    qkv = torch.randn(sum(lengths), sum(widths), dtype=torch.bfloat16)
    out, grad = (torch.randn(sum(lengths), widths[0] + 64, dtype=torch.bfloat16) for _ in range(2))
    out, grad = (x[:, : widths[0]].unflatten(1, (-1, size)) for x in (out, grad))
    room = split(torch.full_like(qkv, torch.nan))
    attended = attention.forward(*split(qkv), out, row, window)
    assert attended.stats is not None
    attention.backward(grad, attended, room, row, window)

    inputs = [part.float().requires_grad_() for part in split(qkv)]
    first, parts = 0, []
    for length in lengths:
        q, k, v = (part[first : first + length].transpose(0, 1) for part in inputs)
        mask = torch.ones(length, length, dtype=torch.bool).tril()
        mask = mask if window is None else mask.triu(1 - window)
        parts.append(torch.nn.functional.scaled_dot_product_attention(q[None], k[None], v[None], mask))
        first += length
    want = torch.cat(parts, 2)[0].transpose(0, 1)
    torch.testing.assert_close(out.float(), want, rtol=2e-2, atol=2e-2)
    for found, wanted in zip(room, torch.autograd.grad(want, inputs, grad.float()), strict=True):
        assert torch.linalg.norm(found.float() - wanted) < 1e-2 * torch.linalg.norm(wanted)


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


@pytest.mark.parametrize("fp8", [False, pytest.param(True, marks=pytest.mark.skipif(not fast_fp8(), reason="no fp8"))])
@pytest.mark.parametrize("kind", ["own keys", "grouped keys", "head norms"])
def test_a_replayed_pass_gives_what_the_kernels_one_by_one_give(kind, fp8):
    shape = {
        "vocab_size": 300,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4 if kind == "own keys" else 2,
        "head_dim": 64,
    }
    base = Qwen3ForCausalLM(Qwen3Config(**shape)) if kind == "head norms" else LlamaForCausalLM(LlamaConfig(**shape))
    model = adapted(base.to(torch.bfloat16))
    fast = FastModel(model, fp8=fp8)
    generator = random.Random(0)
    for number in range(5):
        rows = [[generator.randrange(300) for _ in range(length)] for length in (130 - 20 * number, 90, 21 + number)]
        batch = make_batch(rows, ignored=number)
        want = fast._there_and_back(Pass.of(batch))
        model.zero_grad()
        loss, hits = fast.loss(batch)
        (loss / 2).backward()
        assert float(loss) == pytest.approx(float(want.loss), rel=2e-2 if fp8 else 5e-3)
        assert abs(float(hits) - float(want.hits)) <= 2
        found = torch.cat([parameter.grad.flatten() for parameter in fast._parameters])
        wanted = torch.cat([gradient.flatten() for gradient in want.of_parameters]) / 2
        assert torch.linalg.norm(found - wanted) < (0.2 if fp8 else 0.03) * torch.linalg.norm(wanted)
    recorded = [one for one in fast._graphs._sizes.values() if one.graph is not None]
    assert recorded, "no pass was recorded"


@pytest.mark.skipif(not fast_fp8(), reason="needs Hopper")
def test_what_is_trained_in_8_bits_is_validated_in_16(tiny_llama):
    model, batch = make_model(tiny_llama), make_batch([list(range(5, 45)), list(range(100, 170))])
    fp8 = FastModel(model, fp8=True)
    fp8.loss(batch)[0].backward()
    with torch.no_grad():
        torch.testing.assert_close(fp8.loss(batch), FastModel(model).loss(batch))


def test_no_garbage_is_collected_while_a_pass_is_recorded(tiny_llama):
    """The pool of a model that was given up, freed by the collector in a recording, ended the process."""
    fast = FastModel(make_model(tiny_llama))
    batch = make_batch([list(range(5, 45))])
    collects = []

    def run(one):
        collects.append(gc.isenabled())
        return fast._there_and_back(one)

    graphs = Graphs(run, fast._parameters, torch.device("cuda:0"))
    with torch.no_grad():
        for _ in range(3):
            graphs(Pass.of(batch))
    assert collects == [True, False]  # once launched, once recorded, once replayed
    assert gc.isenabled()


@pytest.mark.parametrize("fp8", [False, pytest.param(True, marks=pytest.mark.skipif(not fast_fp8(), reason="no fp8"))])
def test_weights_that_are_kept_do_not_lie_among_the_passes_tensors(fp8, tiny_llama):
    """A first pass that made them left 20 GB in pieces, and the memory ran out at the first longer one."""
    fast = FastModel(make_model(tiny_llama), resident=not fp8, fp8=fp8)
    fast.loss(make_batch([list(range(5, 45))]))[0].backward()

    def pool(tensor):
        segments = torch.cuda.memory_snapshot()
        return next(
            one["segment_pool_id"]
            for one in segments
            if one["address"] <= tensor.data_ptr() < one["address"] + one["total_size"]
        )

    kept = [one.by_out[0] if fp8 else one for one in fast._weights._kept.values()]
    assert len(kept) == len(fast._groups)
    assert {pool(one) for one in kept} == {(0, 0)}
    with fast._graphs.inside():
        assert pool(torch.zeros(1000, device="cuda")) == fast._graphs._pool.id


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
