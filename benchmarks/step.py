"""One training step of the fast path, without the trainer around it: speed, memory and where the time goes.

    python -m benchmarks.step [--shape NAME] [--tokens N,N] [--keep WORD,WORD] [--resident] [--fp8] [--profile DIR]

Weights are random, in NF4 with double quantization; LoRA r=16 on all linear layers; samples have the seed's lengths,
cut at 512. Prints a RESULT line for each setting. Needs a CUDA GPU.
"""

import argparse
import json
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

from core.specs import LoraSpec
from worker.fast.model import FastModel
from worker.sequences import collate
from worker.trainer import add_adapter

_WIDE = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 32_000}
SHAPES: dict[str, Any] = {
    "llama-2-7b": lambda: LlamaConfig(**_WIDE, intermediate_size=11_008),
    "mistral-7b": lambda: MistralConfig(**_WIDE, intermediate_size=14_336, num_key_value_heads=8, sliding_window=None),
    "qwen2.5-7b": lambda: Qwen2Config(
        hidden_size=3584,
        intermediate_size=18_944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=152_064,
    ),
    "qwen3-8b": lambda: Qwen3Config(
        hidden_size=4096,
        intermediate_size=12_288,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=151_936,
    ),
}


def quantized(config: PreTrainedConfig) -> torch.nn.Module:
    """A model of random weights, its linear layers but for the head in NF4."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.nn.Linear) and name != "lm_head":
                packed = Linear4bit(child.in_features, child.out_features, bias=child.bias is not None, device="meta")
                weight = Params4bit(child.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True)
                packed.weight, packed.bias = weight.to("cuda"), child.bias
                setattr(parent, name, packed)
    model.requires_grad_(False)
    torch.cuda.empty_cache()
    return model


def adapted(config: PreTrainedConfig) -> PeftModel:
    """That model with adapters of which none is zero."""
    model = add_adapter(quantized(config), LoraSpec(r=16, alpha=32, dropout=0.0), name="shape", seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.002)
    model.train()
    return model


def row_of(tokens: int, words: int, seed: int) -> dict[str, Any]:
    """A row of ``tokens`` tokens in samples of the seed's lengths, every token trained, on the GPU."""
    rng, rows = np.random.default_rng(seed), []
    while tokens:
        length = min(tokens, 512, max(8, int(rng.lognormal(np.log(144), 0.99))))
        ids = rng.integers(10, words, length).tolist()
        rows.append({"input_ids": ids, "labels": ids})
        tokens -= length
    batch = collate(rows)
    return {name: value.cuda() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def measure(fast: FastModel, model: PeftModel, tokens: int, words: int, steps: int) -> dict[str, Any]:
    """Seconds a step, of the GPU and of the host alone, and the memory it takes."""
    rows = [row_of(tokens, words, seed) for seed in range(3)]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)

    def step(number: int) -> torch.Tensor:
        loss, _ = fast.loss(rows[number % len(rows)])
        (loss / len(rows[number % len(rows)]["targets"])).backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    for number in range(3):
        step(number)
    torch.cuda.synchronize()
    resting = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    for number in range(steps):
        loss = step(number)
    host = time.perf_counter() - began
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - began) / steps
    return {
        "tokens": tokens,
        "tokens_per_second": round(tokens / seconds),
        "ms": round(seconds * 1e3, 1),
        "host_ms": round(host / steps * 1e3, 1),
        "resting_gb": round(resting / 1e9, 3),
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 3),
        "reserved_gb": round(torch.cuda.max_memory_reserved() / 1e9, 3),
        "loss": round(float(loss) / len(rows[0]["targets"]), 4),
    }


def profile(fast: FastModel, tokens: int, words: int, path: Path) -> None:
    """Write a step's kernels by their time."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    row = row_of(tokens, words, 0)
    fast.loss(row)[0].backward()
    torch.cuda.synchronize()
    with profiled(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        fast.loss(row)[0].backward()
        torch.cuda.synchronize()
    averages = found.key_averages()
    kernels = [one for one in averages if one.device_type == DeviceType.CUDA]
    total = sum(one.self_device_time_total for one in kernels) / 1e3
    table = averages.table(sort_by="self_cuda_time_total", row_limit=45, max_name_column_width=70)
    path.write_text(f"{tokens} tokens, {total:.1f} ms of kernels\n{table}\n")


def main() -> None:
    """Measure each combination; what fails is told and does not stop the others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama-2-7b")
    parser.add_argument("--tokens", default="3328,8192,13312,16384")
    parser.add_argument("--keep", default="all")
    parser.add_argument("--resident", action="store_true")
    parser.add_argument("--fp8", action="store_true")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--profile", type=Path)
    args = parser.parse_args()
    config = SHAPES[args.shape]()
    model = adapted(config)
    fast = FastModel(model, resident=args.resident, fp8=args.fp8)
    for keep, tokens in product(args.keep.split(","), map(int, args.tokens.split(","))):
        fast.keep(keep)
        setting = {"shape": args.shape, "keep": keep, "resident": args.resident, "fp8": args.fp8}
        try:
            figures = measure(fast, model, tokens, config.vocab_size, args.steps)
        except torch.cuda.OutOfMemoryError:
            figures = {"tokens": tokens, "failed": "out of memory"}
        print("RESULT " + json.dumps(setting | figures), flush=True)
        torch.cuda.empty_cache()
        if args.profile:
            args.profile.mkdir(parents=True, exist_ok=True)
            profile(
                fast,
                tokens,
                config.vocab_size,
                args.profile / f"{args.shape}-{'fp8-' if args.fp8 else ''}{keep}-{tokens}.txt",
            )


if __name__ == "__main__":
    main()
