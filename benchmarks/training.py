"""QLoRA training, ours beside TRL, in one run on one GPU: speed, memory and, on real weights, the losses.

    python -m benchmarks.training --out DIR [--only NAME ...] [--gate [--epoch]]

Llama-2-7B's shape with random weights (`benchmarks.llama7b`), NF4 with double quantization, LoRA r=16 on all linear
layers, samples of the seed's lengths cut at 512. Ours is the worker's own training program; TRL's SFTTrainer gets the
same samples in the same tokens. Only real tokens count. Processes run one after the other, ours between the peers.

`--gate` trains SmolLM2 (real weights) on the standard library's functions instead: by ours and by eager PEFT with
float32 adapters, both in bfloat16, each step against eager float32.

DIR gets training.json and training.md, or gate.json and gate.md.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.llama7b import make_shape, write_samples
from benchmarks.main_job import set_option
from benchmarks.main_job import write_samples as write_functions

SHAPE = "llama-2-7b-shape"


@dataclass(frozen=True)
class Way:
    """One row of the table: ``options`` of our spec, or ``peer``, arguments of TRL's SFTConfig."""

    samples: int
    steps: int
    options: tuple[str, ...] = ()
    #: Steps before the clock starts: caches, plans and clocks settle, and small passes are recorded.
    warm: int = 4
    #: Of the GPU's memory that torch may take, in GB; None for all.
    within: float | None = None
    peer: dict[str, Any] | None = None


_TUNED = {
    "use_liger_kernel": True,
    "train_sampling_strategy": "group_by_length",
    "gradient_checkpointing": False,
    "optim": "adamw_torch_fused",
}
_USUAL = {"gradient_checkpointing": True, "optim": "paged_adamw_32bit"}
WAYS: dict[str, Way] = {
    "Hone, 64 samples": Way(64, 16),
    "Hone, 16 samples": Way(16, 180, warm=80),
    "Hone, 64 samples, fp8": Way(64, 16, ('hone.training.precision="fp8"',)),
    "Hone, 128 samples": Way(128, 12),
    "Hone, 64 samples, within 24 GB": Way(64, 10, within=24),
    "Hone, 64 samples, within 12 GB": Way(64, 9, within=12),
    # 32 samples at once take 75 of 80 GB: two such passes a step were slower than four of 16 (4,930 tokens/s).
    "TRL, tuned, 64 samples": Way(64, 11, peer={"batch": 16, **_TUNED}),
    "TRL, tuned, 32 samples": Way(32, 16, peer={"batch": 32, **_TUNED}),
    "TRL, tuned, 16 samples": Way(16, 24, peer={"batch": 16, **_TUNED}),
    "TRL, as people run it, 16 samples": Way(16, 9, peer={"batch": 4, **_USUAL}),
}
#: What runs in one process, in order.
GROUPS = (
    ("Hone, 64 samples", "Hone, 16 samples"),
    ("TRL, tuned, 64 samples",),
    ("Hone, 64 samples, fp8", "Hone, 128 samples"),
    ("TRL, tuned, 32 samples", "TRL, tuned, 16 samples"),
    ("Hone, 64 samples, within 24 GB", "Hone, 64 samples, within 12 GB"),
    ("TRL, as people run it, 16 samples",),
)
GATE = {
    "eager, float32": ('hone.training.precision="float32"', "hone.training.fast_path=false"),
    "Hone, bfloat16": ('hone.training.precision="bfloat16"',),
    "Hone, fp8": ('hone.training.precision="fp8"',),
    "eager, bfloat16": ('hone.training.precision="bfloat16"', "hone.training.fast_path=false"),
}
#: The whole epoch, for 8 bits against 16.
EPOCH = {name: GATE[name] for name in ("Hone, bfloat16", "Hone, fp8")}


# --- Ours ------------------------------------------------------------------------------------------------------------


@dataclass
class Log:
    """What a run tells of its steps: (step, tokens so far, loss, moment) each, and validation losses by step."""

    steps: list[tuple[int, int, float, float]] = field(default_factory=list)
    valid: dict[int, float] = field(default_factory=dict)


def listen(log: Log) -> None:
    """Have the trainer's own progress noted."""
    from worker.progress import ProgressCallback

    original = ProgressCallback.on_log

    def on_log(self: Any, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs:
            log.steps.append((state.global_step, state.num_input_tokens_seen, logs["loss"], time.perf_counter()))
        elif "eval_loss" in logs:
            log.valid[state.global_step] = logs["eval_loss"]
        original(self, args, state, control, logs, **kwargs)

    ProgressCallback.on_log = on_log  # type: ignore[method-assign]


def make_job(args: argparse.Namespace, options: list[str], *, gate: bool) -> Any:
    """The worker's input file, as an object."""
    from core.catalogue import FolderModel, find_base_model, load_catalogue
    from core.settings import Settings
    from core.specs import FineTuneSpec
    from worker.protocol import TrainingInput

    model = "smollm2-135m-instruct" if gate else SHAPE
    spec: dict[str, Any] = {"model": model, "training_file": "file-train"}
    for option in options:
        set_option(spec, option)
    return TrainingInput(
        job_id="ftjob-benchmark",
        fine_tuned_model=f"ft:{model}:hone::benchmark",
        spec=FineTuneSpec.model_validate(spec),
        base_model=find_base_model(load_catalogue(Settings()), model)
        if gate
        else FolderModel(source="folder", path=args.model, prompt_template="none"),
        cache=args.model.parent / "cache",
        train_file=args.out / ("functions.jsonl" if gate else "samples.jsonl"),
    )


def train_ours(args: argparse.Namespace, job: Any, kept: Any, name: str) -> tuple[Log, dict[str, Any]]:
    """Run the worker's training program in this process; its log, and what the manifest says of memory and plan."""
    import torch

    from worker import train
    from worker.progress import ProgressCallback, StopRequest
    from worker.protocol import LineWriter
    from worker.warm import _forget_the_job

    folder = args.out / "work" / name.replace(" ", "-").replace(",", "")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "input.json").write_text(job.model_dump_json())
    log, original = Log(), ProgressCallback.on_log
    listen(log)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with (folder / "lines.jsonl").open("w") as stream:
        code = train.run(folder / "input.json", folder / "out", LineWriter(stream), StopRequest(), kept)
    ProgressCallback.on_log = original  # type: ignore[method-assign]
    lines = [json.loads(line) for line in (folder / "lines.jsonl").read_text().splitlines()]
    if code:
        raise RuntimeError(f"{name} ended with {code}: {lines[-1]}")
    started = next(line for line in lines if line["type"] == "started")
    _forget_the_job(dict(os.environ))
    plan = started["resolved"]["plan"]
    told = {key: plan[key] for key in ("pass_tokens", "keep", "resident", "peak")}
    told["events"] = [line["message"] for line in lines if line["type"] == "event" and line.get("level") == "warn"]
    return log, told


def measure_ours(args: argparse.Namespace, name: str, kept: Any) -> dict[str, Any]:
    """Speed and memory of one of our ways."""
    import torch

    way = WAYS[name]
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, way.within * 1e9 / total) if way.within else 1.0)
    options = [
        f"hyperparameters.batch_size={way.samples}",
        "hone.data.max_seq_length=512",
        f"hone.training.max_steps={way.steps}",
        "hone.training.eval_steps=100000",
        "hone.training.save_steps=100000",
        *way.options,
    ]
    log, told = train_ours(args, make_job(args, options, gate=False), kept, name)
    (_, first, _, began), (_, last, loss, ended) = log.steps[way.warm - 1], log.steps[-1]
    return {
        "way": name,
        "tokens_per_second": round((last - first) / (ended - began)),
        "tokens_per_step": round(last / len(log.steps)),
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 1),
        "reserved_gb": round(torch.cuda.max_memory_reserved() / 1e9, 1),
        "losses": [round(one[2], 3) for one in log.steps][:: max(1, len(log.steps) // 6)],
        "last_loss": round(loss, 3),
        **told,
    }


# --- The peer --------------------------------------------------------------------------------------------------------


def measure_peer(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """Speed and memory of TRL's SFTTrainer on the same samples, padded where it pads."""
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from worker.train import prepare

    way = WAYS[name]
    assert way.peer is not None
    peer = dict(way.peer)
    batch = peer.pop("batch")
    data = prepare(make_job(args, ["hone.data.max_seq_length=512"], gate=False))
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = AutoModelForCausalLM.from_pretrained(
        args.model, quantization_config=quantization, dtype=torch.bfloat16, device_map={"": 0}
    )
    moments: list[float] = []
    real: list[int] = []

    class Clock(TrainerCallback):  # type: ignore[misc]  # transformers has no types
        def on_step_end(self, *_: Any, **__: Any) -> None:
            torch.cuda.synchronize()
            moments.append(time.perf_counter())

    class Counting(SFTTrainer):  # type: ignore[misc]  # TRL has no types
        def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
            real.append(int(inputs["attention_mask"].sum()))
            return super().training_step(model, inputs, *rest, **named)

    trainer = Counting(
        model=model,
        args=SFTConfig(
            output_dir=str(args.out / "work" / "trl"),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=way.samples // batch,
            max_steps=way.steps,
            learning_rate=2.9e-4,
            bf16=True,
            max_length=512,
            max_grad_norm=1.0,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            **peer,
        ),
        train_dataset=data.train,
        processing_class=data.tokenizer,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[Clock()],
    )
    torch.cuda.reset_peak_memory_stats()
    trainer.train()
    passes = way.samples // batch
    tokens = sum(real[way.warm * passes :])
    losses = [round(entry["loss"], 3) for entry in trainer.state.log_history if "loss" in entry]
    return {
        "way": name,
        "tokens_per_second": round(tokens / (moments[-1] - moments[way.warm - 1])),
        "tokens_per_step": round(sum(real) / way.steps),
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 1),
        "reserved_gb": round(torch.cuda.max_memory_reserved() / 1e9, 1),
        "losses": losses[:: max(1, len(losses) // 6)],
        "last_loss": losses[-1],
    }


# --- The gate --------------------------------------------------------------------------------------------------------


def run_gate(args: argparse.Namespace) -> dict[str, Any]:
    """Losses of each way over some steps against eager float32's, and of an epoch in 8 and 16 bits."""
    from worker.warm import Kept

    kept, runs = Kept(), {}
    always = [
        f"hyperparameters.batch_size={args.batch}",
        "hone.training.learning_rate=0.001",
        "hone.training.warmup_steps=1",
        "hone.training.save_steps=100000",
        *args.set,
    ]
    short = [*always, f"hone.training.max_steps={args.steps}", f"hone.training.eval_steps={args.steps}"]
    jobs = [(name, options, short) for name, options in GATE.items()]
    if args.epoch:
        whole = [*always, "hone.training.eval_steps=40"]
        jobs += [(f"{name}, an epoch", options, whole) for name, options in EPOCH.items()]
    for name, options, common in jobs:
        began = time.perf_counter()
        log, told = train_ours(args, make_job(args, [*common, *options], gate=True), kept, name)
        runs[name] = {"losses": [one[2] for one in log.steps], "valid": log.valid, "events": told["events"]}
        print(f"RUN {name}: {time.perf_counter() - began:.0f} s, validation {log.valid}", flush=True)
        (args.out / "gate.json").write_text(json.dumps({"runs": runs, "gate": compare(runs)}, indent=1) + "\n")
    return {"runs": runs, "gate": compare(runs)}


def compare(runs: dict[str, Any]) -> list[dict[str, Any]]:
    """Largest and mean difference of each step's loss, and that of the last validation, in percent."""
    pairs = [(name, "eager, float32") for name in ("eager, bfloat16", "Hone, bfloat16", "Hone, fp8")]
    pairs += [("Hone, bfloat16", "eager, bfloat16"), ("Hone, fp8, an epoch", "Hone, bfloat16, an epoch")]
    rows = []
    for ours, against in pairs:
        if ours not in runs or against not in runs:
            continue
        steps = [100 * abs(a - b) / b for a, b in zip(runs[ours]["losses"], runs[against]["losses"], strict=True)]
        last = max(runs[ours]["valid"])
        a, b = runs[ours]["valid"][last], runs[against]["valid"][last]
        rows.append(
            {
                "way": ours,
                "against": against,
                "steps": len(steps),
                "largest_percent": round(max(steps), 3),
                "at_step": steps.index(max(steps)) + 1,
                "mean_percent": round(sum(steps) / len(steps), 3),
                "validation": a,
                "validation_against": b,
                "validation_percent": round(100 * abs(a - b) / b, 3),
            }
        )
    return rows


# --- All of it -------------------------------------------------------------------------------------------------------


def here(args: argparse.Namespace) -> None:
    """Do one process's share; a RESULT line for each way, also for one that fails."""
    if args.here == "shape":
        make_shape(args.model)
        return
    if args.here == "gate":
        print("RESULT " + json.dumps(run_gate(args)), flush=True)
        return
    from worker.warm import Kept

    kept = Kept()
    for name in json.loads(args.here):
        try:
            found = measure_peer(args, name) if WAYS[name].peer else measure_ours(args, name, kept)
        except Exception as error:  # one way that fails must not hide the others
            found = {"way": name, "tokens_per_second": None, "error": repr(error)[:500]}
        print("RESULT " + json.dumps(found), flush=True)


def child(share: str) -> list[dict[str, Any]]:
    """Run this program for a share of the work; its results."""
    results = []
    environment = {"PYTORCH_ALLOC_CONF": "expandable_segments:True", "HF_HUB_OFFLINE": "1"} | dict(os.environ)
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.training", *sys.argv[1:], "--here", share],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(("RESULT ", "RUN ")):
                print(line[:1500].rstrip(), flush=True)
            if line.startswith("RESULT "):
                results.append(json.loads(line[7:]))
    return results


def table(results: list[dict[str, Any]]) -> str:
    """Speeds as Markdown; beside each the ratio to the fastest peer."""
    best = max((one["tokens_per_second"] or 0 for one in results if "TRL" in one["way"]), default=0)
    lines = ["| what | real tokens/s | of the fastest peer | peak GB |", "|---|---|---|---|"]
    for one in results:
        speed = one["tokens_per_second"]
        told = f"{speed:,}" if speed else one.get("error", "failed")[:80]
        ratio = f"{speed / best:.2f}" if speed and best else ""
        lines.append(f"| {one['way']} | {told} | {ratio} | {one.get('peak_gb', '')} |")
    return "\n".join(lines) + "\n"


def gate_table(gate: list[dict[str, Any]]) -> str:
    """Differences as Markdown."""
    lines = ["| what | against | steps | largest | mean | validation |", "|---|---|---|---|---|---|"]
    for one in gate:
        cells = [one["way"], one["against"], str(one["steps"]), f"{one['largest_percent']} % (step {one['at_step']})"]
        cells += [f"{one['mean_percent']} %", f"{one['validation']:.4f} ({one['validation_percent']} %)"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Make what is missing, run each process, write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=Path("/tmp/llama7b"))
    parser.add_argument("--only", nargs="*", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--gate", action="store_true")
    parser.add_argument("--steps", type=int, default=50, help="with --gate")
    parser.add_argument("--batch", type=int, default=32, help="with --gate: samples a step")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=JSON", help="with --gate: more options")
    parser.add_argument("--epoch", action="store_true", help="with --gate: also an epoch in 8 and in 16 bits")
    parser.add_argument("--here", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        here(args)
        return
    (args.out / "work").mkdir(parents=True, exist_ok=True)
    if args.gate:
        train, _ = write_functions(args.out, 500)
        train.rename(args.out / "functions.jsonl")
        (found,) = child("gate")
        (args.out / "gate.md").write_text(gate_table(found["gate"]))
        print(gate_table(found["gate"]))
        return
    write_samples(args.out / "samples.jsonl", 3000)
    if not (args.model / "config.json").exists():
        child("shape")  # a process of its own: this one would keep the GPU's memory
    results: list[dict[str, Any]] = []
    for group in GROUPS:
        names = [name for name in group if name in args.only]
        if names:
            results += child(json.dumps(names))
            (args.out / "training.json").write_text(json.dumps(results, indent=1) + "\n")
            (args.out / "training.md").write_text(table(results))
    print(table(results))


if __name__ == "__main__":
    main()
