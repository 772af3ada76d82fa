"""One GPU against several: the same job by the worker's own program, its speed and its losses.

    python -m benchmarks.two_gpus --out DIR [--kind llama-2-7b|tiny] [--gpus 2] [--batch 128] [--steps 12]

Cards differ by some percent, and together they go at the slowest one's pace: one GPU is each of them in its turn, and
the mean is compared. Prints a RESULT line for each run and one that compares; DIR/two_gpus.json has every step. Where
there is no GPU, `--kind tiny` tries the script with processes on the processor.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.main_job import run_child
from benchmarks.shaped_job import KINDS, make_job, make_model
from worker.protocol import Done, Started, Step

#: Steps that count begin here: before, memory is claimed and kernels are compiled.
WARM_UP = 4


def run(args: argparse.Namespace, gpus: int, first: int = 0) -> dict[str, Any]:
    """Train by so many GPUs from the ``first`` on; each step's loss and speed."""
    samples = args.batch * args.steps + args.batch
    job = make_job(
        args.work, args.model, samples=samples, batch=args.batch, max_steps=args.steps, gpus=gpus,
        precision="auto" if args.kind != "tiny" else "float32",
    )  # fmt: skip
    source, out = args.work / f"gpus-{gpus}.json", args.work / f"gpus-{gpus}-{time.time_ns()}"
    visible = {"CUDA_VISIBLE_DEVICES": ",".join(str(first + number) for number in range(gpus))}
    source.write_text(job.model_dump_json())
    began = time.monotonic()
    lines = run_child("worker.train", source, out, show=args.verbose, env=visible)
    steps = {line.step: line.metrics for line in lines if isinstance(line, Step) and "train_loss" in line.metrics}
    plan = next(line for line in lines if isinstance(line, Started)).resolved.plan
    done = next(line for line in lines if isinstance(line, Done))
    return {
        "gpus": gpus,
        "first": first,
        "seconds": round(time.monotonic() - began, 1),
        "tokens_per_second": statistics.median(
            metrics["tokens_per_second"] for step, metrics in steps.items() if step > min(WARM_UP, len(steps) - 1)
        ),
        "losses": {step: metrics["train_loss"] for step, metrics in steps.items()},
        "plan": plan.model_dump(mode="json", include={"pass_tokens", "keep", "resident", "peak"}),
        "memory": done.report["run"]["memory"],
    }


def main() -> None:
    """Each alone, then all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=None)
    parser.add_argument("--kind", choices=KINDS, default="llama-2-7b")
    parser.add_argument("--model", type=Path, default=None, help="folder of a model that was made before")
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    args.work = args.work or args.out / "work"
    args.model = make_model(args.kind, args.model or args.work / args.kind)
    runs: list[dict[str, Any]] = []
    for gpus, first in [*((1, number) for number in range(args.gpus)), (args.gpus, 0)]:
        runs.append(run(args, gpus, first))
        (args.out / "two_gpus.json").write_text(json.dumps(runs, indent=1) + "\n")
        print(
            f"RESULT {gpus} GPU(s) from {first}: {runs[-1]['tokens_per_second']:,.0f} tokens/s, "
            f"{runs[-1]['seconds']} s in all, passes of {runs[-1]['plan']['pass_tokens']:,} tokens",
            flush=True,
        )
    *alone, many = runs
    speeds = [one["tokens_per_second"] for one in alone]
    worst = max(abs(many["losses"][step] / loss - 1) for step, loss in alone[0]["losses"].items())
    print(
        f"RESULT {args.gpus} GPUs are {many['tokens_per_second'] / statistics.mean(speeds):.2f} times one of them, "
        f"{many['tokens_per_second'] / min(speeds):.2f} times the slowest; "
        f"losses differ by at most {100 * worst:.3f} %",
        flush=True,
    )


if __name__ == "__main__":
    main()
