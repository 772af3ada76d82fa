"""Output tokens a second of an evaluation's generation, ours beside transformers' own ways, in one run.

    python -m benchmarks.generation --out DIR [--only NAME …] [--profile]

Llama-2-7B's shape with random weights, greedy, prompts of about 150 tokens (log-normal, 16 to 512), 256 new tokens.
Each way runs in a process of its own; the slow ones answer fewer prompts. Every way has the adapter applied: `generate`
as most scripts do it, on NF4 with the adapter beside it; the others on dense bfloat16 weights.
"""

import argparse
import json
import math
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.llama7b import make_shape
from core.catalogue import FolderModel
from core.specs import QuantizationSpec, SamplingSpec

#: Prompts, new tokens and prompts at once of each way.
WAYS = {
    "generate, NF4 + adapter, batch 32": (64, 128, 32),
    "generate, bfloat16, batch 64": (128, 128, 64),
    "generate_batch (continuous batching), bfloat16": (256, 256, None),
    "Hone": (1000, 256, None),
}
#: What `--here` takes beside a way's name: make the model.
SHAPE = "shape"
PAD = 3


def make_prompts(count: int, words: int) -> list[list[int]]:
    """Random tokens out of ``words``; lengths of median 144."""
    rng = random.Random(0)
    lengths = [min(512, max(16, int(rng.lognormvariate(math.log(144), 0.5)))) for _ in range(count)]
    return [[rng.randrange(10, words - 10) for _ in range(length)] for length in lengths]


def make_adapter(folder: Path, model: Any) -> None:
    """An adapter of rank 16 on every linear layer, small but not zero."""
    import torch
    from peft import LoraConfig
    from safetensors.torch import save_file

    torch.manual_seed(0)
    tensors = {}
    for name, layer in model.named_modules():
        if name.endswith("_proj"):
            stem = f"base_model.model.{name}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn(16, layer.in_features) / layer.in_features**0.5
            tensors[f"{stem}.lora_B.weight"] = torch.randn(layer.out_features, 16) * 1e-3
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM").save_pretrained(folder)


def load(args: argparse.Namespace, *, nf4: bool) -> Any:
    """The base with the adapter: beside 4-bit weights, or merged into the dequantized ones."""
    from peft import PeftModel

    from worker.base_models import load_base
    from worker.merge import densify_, merge_adapter_

    entry = FolderModel(source="folder", path=args.model)
    model = load_base(entry, args.model, QuantizationSpec(), "bfloat16")
    adapter = args.model / "adapter"
    if not (adapter / "adapter_config.json").exists():
        make_adapter(adapter, model)
    if nf4:
        return PeftModel.from_pretrained(model, adapter)
    densify_(model)
    merge_adapter_(model, adapter)
    return model


def by_generate(model: Any, prompts: list[list[int]], new: int, batch: int) -> int:
    """Transformers' generate on left-padded batches of similar lengths; tokens made."""
    import torch

    made = 0
    ordered = sorted(prompts, key=len)
    for first in range(0, len(ordered), batch):
        some = ordered[first : first + batch]
        longest = len(some[-1])
        ids = torch.tensor([[PAD] * (longest - len(one)) + one for one in some], device=model.device)
        out = model.generate(
            input_ids=ids,
            attention_mask=(ids != PAD).long(),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            pad_token_id=PAD,
        )
        made += (out.shape[1] - longest) * len(some)
    return made


def by_generate_batch(model: Any, prompts: list[list[int]], new: int) -> int:
    """Transformers' continuous batching; tokens made."""
    from transformers import GenerationConfig

    config = GenerationConfig(max_new_tokens=new, do_sample=False, eos_token_id=-1, pad_token_id=PAD)
    answers = model.generate_batch(inputs=prompts, generation_config=config)
    return sum(len(answer.generated_tokens) for answer in answers.values())


def by_hone(args: argparse.Namespace, model: Any, prompts: list[list[int]], new: int) -> int:
    """The decoder of evaluations; tokens made."""
    from worker.base_models import load_tokenizer
    from worker.decode.decoder import decode

    tokenizer = load_tokenizer(FolderModel(source="folder", path=args.model), args.model)
    return sum(answer.tokens for answer in decode(model, tokenizer, prompts, SamplingSpec(max_tokens=new)))


def measure(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """Run one way in this process."""
    import torch

    count, new, batch = WAYS[name]
    count, new = min(count, args.most_prompts), min(new, args.most_tokens)
    model = load(args, nf4="NF4" in name).eval()
    run: Callable[[list[list[int]], int], int]
    if batch is not None:
        run = lambda prompts, new: by_generate(model, prompts, new, batch)  # noqa: E731
    elif name == "Hone":
        run = lambda prompts, new: by_hone(args, model, prompts, new)  # noqa: E731
    else:
        run = lambda prompts, new: by_generate_batch(model, prompts, new)  # noqa: E731
    prompts = make_prompts(count, model.config.vocab_size)
    cuda = torch.cuda.is_available()
    with torch.no_grad():
        run(prompts[:8], 8)
        if cuda:
            torch.cuda.synchronize()
        spent = time_parts() if args.profile else {}
        began = time.monotonic()
        made = run(prompts, new)
        seconds = time.monotonic() - began
        parts = {key: {"calls": len(times), "seconds": round(sum(times), 2)} for key, times in spent.items()}
        if args.profile and name == "Hone" and cuda:
            profile(args, lambda: run(prompts[:200], 32))
    return {
        "way": name,
        "prompts": count,
        "tokens": made,
        "seconds": round(seconds, 2),
        "tokens_per_second": round(made / seconds),
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 1) if cuda else None,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "parts": parts,
    }


def profile(args: argparse.Namespace, run: Callable[[], int]) -> None:
    """Where the GPU's time goes."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    with profiler(activities=[ProfilerActivity.CUDA]) as found:
        run()
    table = found.key_averages().table(sort_by="cuda_time_total", row_limit=30, max_name_column_width=70)
    (args.out / "generation-profile.txt").write_text(table)


def time_parts() -> dict[str, list[float]]:
    """From now on, note the seconds of each pass over prompts, block of steps and capture of a graph, by name."""
    from worker.decode.steps import Steps

    spent: dict[str, list[float]] = {}

    def timed(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            began = time.monotonic()
            try:
                return original(*args)
            finally:
                spent.setdefault(name, []).append(time.monotonic() - began)

        return call

    for name in ("read", "run", "_capture"):
        setattr(Steps, name, timed(name, getattr(Steps, name)))
    return spent


def main() -> None:
    """Run every way, print a RESULT line each, then a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("/tmp/llama7b"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--most-prompts", type=int, default=10**6)
    parser.add_argument("--most-tokens", type=int, default=10**6)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--here", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.here == SHAPE:
        make_shape(args.model)
        return
    if args.here:
        print("RESULT " + json.dumps(measure(args, args.here)), flush=True)
        return
    command = [sys.executable, "-m", "benchmarks.generation", *sys.argv[1:], "--here"]
    if not (args.model / "config.json").exists():
        subprocess.run([*command, SHAPE], check=True)  # this process would keep the GPU's memory
    results = []
    for name in args.only:
        ran = subprocess.run(
            [*command, name],
            stdout=subprocess.PIPE,
            text=True,
            check=False,  # one way that fails must not hide the others
        )
        found = [json.loads(line[7:]) for line in ran.stdout.splitlines() if line.startswith("RESULT ")]
        results += found or [{"way": name, "tokens_per_second": None, "exit_code": ran.returncode}]
        print("RESULT " + json.dumps(results[-1]), flush=True)
    (args.out / "generation.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
