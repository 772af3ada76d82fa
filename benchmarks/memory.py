"""Predicted against measured peak memory, over shapes, ranks, sizes of passes and what blocks keep.

    python -m benchmarks.memory --out DIR [--set gpu|processor|tiny]

Each setting trains two steps of two passes by the worker's own trainer. The peak is torch's largest on a GPU,
resident memory on a processor. Prints a RESULT line a setting; DIR/memory.json has them all. `tiny` tries the script
where a model is too small for its figures to mean anything.
"""

import argparse
import io
import json
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.shapes import KINDS, make_model, make_rows, make_tokenizer

#: Tokens of a sample; a pass of T tokens has T / SAMPLE of them.
SAMPLE = 512


@dataclass(frozen=True)
class Setting:
    """One row of the table. ``keep`` counts blocks: all, attention, input."""

    kind: str
    tokens: int
    keep: tuple[int, int, int]
    resident: bool = False
    r: int = 16
    fast_path: bool = True
    dropout: float = 0.0


SETTINGS = [
    Setting("llama-2-7b", 3072, (32, 0, 0)),
    Setting("llama-2-7b", 8192, (32, 0, 0)),
    Setting("llama-2-7b", 16_384, (32, 0, 0)),
    Setting("llama-2-7b", 8192, (32, 0, 0), resident=True),
    Setting("llama-2-7b", 16_384, (32, 0, 0), resident=True),
    Setting("llama-2-7b", 16_384, (0, 32, 0)),
    Setting("llama-2-7b", 16_384, (0, 0, 32)),
    Setting("llama-2-7b", 8192, (16, 8, 8)),
    Setting("llama-2-7b", 8192, (32, 0, 0), r=4),
    Setting("llama-2-7b", 8192, (32, 0, 0), r=64),
    Setting("llama-2-7b", 4096, (32, 0, 0), fast_path=False),
    Setting("llama-2-7b", 4096, (32, 0, 0), fast_path=False, dropout=0.1),
    Setting("llama-2-7b", 8192, (0, 0, 32), fast_path=False),
    Setting("smollm2-135m", 16_384, (30, 0, 0)),
    Setting("smollm2-135m", 4096, (30, 0, 0), resident=True),
    Setting("smollm2-135m", 8192, (30, 0, 0), fast_path=False),
    Setting("mistral-7b", 8192, (32, 0, 0)),
    Setting("mistral-7b", 16_384, (0, 32, 0)),
    Setting("qwen2.5-7b", 8192, (28, 0, 0)),
    Setting("qwen2.5-7b", 8192, (0, 0, 28), resident=True),
]
TINY = [
    Setting("tiny", 1024, (2, 0, 0)),
    Setting("tiny", 1024, (0, 2, 0), resident=True),
    Setting("tiny", 1024, (1, 0, 1)),
    Setting("tiny", 1024, (2, 0, 0), fast_path=False),
    Setting("tiny", 1024, (0, 0, 2), fast_path=False, dropout=0.1),
]


PROCESSOR = [
    Setting("smollm2-135m", 512, (30, 0, 0)),
    Setting("smollm2-135m", 512, (30, 0, 0), resident=True),
    Setting("smollm2-135m", 512, (0, 0, 30)),
    Setting("smollm2-135m", 2048, (30, 0, 0)),
    Setting("smollm2-135m", 512, (30, 0, 0), fast_path=False),
]
SETS = {"gpu": SETTINGS, "processor": PROCESSOR, "tiny": TINY}


def measure(setting: Setting, base: Any, out: Path, device: Any) -> dict[str, Any]:
    """Train two steps; predicted and measured peak in bytes."""
    from datasets import Dataset

    from core.resolve import Facts, resolve
    from core.shape import read_shape
    from core.specs import FineTuneSpec, HoneSpec, Hyperparameters, LoraSpec, TrainingSpec
    from worker.environment import forget_peak_memory, peak_memory
    from worker.protocol import LineWriter
    from worker.running_plan import RunningPlan
    from worker.train import fast_model
    from worker.trainer import QLoraTrainer, add_adapter, make_config
    from worker.warm import free_memory, share

    batch = 2 * setting.tokens // SAMPLE
    spec = FineTuneSpec(
        model=setting.kind,
        training_file="none",
        hyperparameters=Hyperparameters(batch_size=min(256, batch), n_epochs=1),
        hone=HoneSpec(
            lora=LoraSpec(r=setting.r, dropout=setting.dropout),
            training=TrainingSpec(max_steps=2, fast_path=setting.fast_path, save_steps=100, eval_steps=100),
        ),
    )
    shape = read_shape(KINDS[setting.kind])
    facts = Facts(
        train_samples=2 * batch, mean_tokens=SAMPLE, p90_tokens=SAMPLE, longest_tokens=SAMPLE, context_length=4096,
        shape=shape, available_memory=10**12, device=device, fast_bfloat16=device == "cuda", prompt_template="none",
    )  # fmt: skip
    resolved = resolve(spec, facts)
    counts = dict(zip(("all", "attention", "input"), setting.keep, strict=True))
    plan = resolved.plan.model_copy(
        update={"pass_tokens": setting.tokens, "keep": counts, "resident": setting.resident}
    )
    resolved = resolved.model_copy(
        update={"plan": plan, "pass_tokens": setting.tokens, "gradient_checkpointing": plan.recomputes}
    )
    running = RunningPlan(spec, shape, resolved, LineWriter(io.StringIO()))
    model = add_adapter(share(base), spec.hone.lora, name="base", seed=1)

    def make_fast() -> Any:
        return fast_model(model, running)

    trainer = QLoraTrainer(
        model,
        make_config(spec, resolved, out, has_validation=False),
        train=Dataset.from_list(make_rows(2 * batch, SAMPLE)),
        validation=None,
        tokenizer=make_tokenizer(),
        callbacks=[],
        plan=running,
        make_fast=make_fast,
    )
    forget_peak_memory()
    trainer.train()
    report = running.report(peak_memory())
    del trainer
    free_memory()
    return report


def main() -> None:
    """Every setting, one after the other; a base is made once for all of its settings."""
    import torch

    from worker.environment import device, hardware, versions
    from worker.warm import free_memory

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", choices=SETS, default="gpu")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    base: Any = None
    kind = ""
    for setting in SETS[args.set]:
        if setting.kind != kind:
            base = None
            free_memory()
            dtype = torch.bfloat16 if device() == "cuda" else torch.float32
            base, kind = make_model(setting.kind, device(), dtype), setting.kind
        try:
            found = measure(setting, base, args.out / "run", device())
        except Exception as error:
            traceback.print_exc()
            print(f"RESULT {asdict(setting)} failed: {type(error).__name__}: {error}", flush=True)
            continue
        rows.append(asdict(setting) | found)
        print(
            f"RESULT {setting.kind:13} r={setting.r:<3} T={setting.tokens:<6} keep={setting.keep!s:12} "
            f"resident={setting.resident!s:5} fast={setting.fast_path!s:5} dropout={setting.dropout} "
            f"predicted {found['predicted_peak'] / 1e9:7.2f} GB measured {found['measured_peak'] / 1e9:7.2f} GB "
            f"ratio {found['predicted_to_measured']:.3f}",
            flush=True,
        )
        record = {"hardware": hardware(), "versions": versions(), "settings": rows}
        (args.out / "memory.json").write_text(json.dumps(record, indent=1) + "\n")
    within = sum(0.9 <= row["predicted_to_measured"] <= 1.1 for row in rows)
    print(f"RESULT {within} of {len(rows)} settings within 10 %", flush=True)


if __name__ == "__main__":
    main()
