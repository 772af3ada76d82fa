"""From an order to the first step, in a fresh process and in the one that trained before.

    python -m benchmarks.warm_start --out DIR [--kind llama-2-7b|tiny] [--samples 640] [--epoch]

Drives the worker's warm process as its slot does: begun before there is a job, it loads the base for a first, cold job
and has it for the warm ones. `--fresh` begins it with the first job, as a worker that has just started. The first
step's figures come when the second step is under way, so each time holds one step too many. With `--epoch` the last
job trains a whole epoch, to the adapter. Prints RESULT lines; DIR/warm_start.json has when each line came.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.shaped_job import KINDS, make_job, make_model
from core.settings import Settings
from worker.host import Host, Order, base_of, warm_command
from worker.protocol import Done, Event, Started, Step, parse_line
from worker.supervise import child_variables
from worker.workspace import Workspace


def run(host: Host, args: argparse.Namespace, number: int, *, epoch: bool) -> dict[str, Any]:
    """One job; seconds from its order to each kind of line."""
    job = make_job(
        args.work, args.model, samples=args.samples, batch=args.batch,
        max_steps=None if epoch else 3, precision="auto" if args.kind != "tiny" else "float32",
    )  # fmt: skip
    space = Workspace(args.work / f"job-{number}-{time.time_ns()}")
    space.out.mkdir(parents=True)
    space.input.write_text(job.model_dump_json())
    began = time.monotonic()
    turn = host.start(Order.of(space), base_of(space.input), os.environ | child_variables(Settings()))
    found: dict[str, float] = {}
    while (batch := turn.take()) is not None:
        now = round(time.monotonic() - began, 2)
        for line in map(parse_line, (text.decode() for text in batch)):
            if isinstance(line, Event):
                found.setdefault(line.message, now)
            elif isinstance(line, Started):
                found["started"] = now
            elif isinstance(line, Step):
                name = "first step" if "train_loss" in line.metrics else "first validation"
                found.setdefault(name, now)
            elif isinstance(line, Done):
                found["done"] = now
    assert turn.wait() == 0, space.stderr.read_text()[-2000:]
    host.settle()
    return {"pid": turn.pid, "seconds": found}


def prepare(host: Host) -> None:
    """Begin the process and wait until its imports are done: when its processor time stands still."""
    host.prepare(os.environ | child_variables(Settings()))
    assert host.pid is not None
    process, before = psutil.Process(host.pid), -1.0
    while (now := sum(process.cpu_times()[:2])) > before + 0.02:
        before = now
        time.sleep(2)


def main() -> None:
    """A cold job and warm ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=None)
    parser.add_argument("--kind", choices=KINDS, default="llama-2-7b")
    parser.add_argument("--model", type=Path, default=None, help="folder of a model that was made before")
    parser.add_argument("--samples", type=int, default=640)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--epoch", action="store_true")
    parser.add_argument("--jobs", type=int, default=3)
    parser.add_argument("--fresh", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    args.work = args.work or args.out / "work"
    args.model = make_model(args.kind, args.model or args.work / args.kind)
    host, runs = Host(warm_command(), idle_seconds=3600), []
    if not args.fresh:
        prepare(host)
    try:
        for number in range(args.jobs):
            runs.append(run(host, args, number, epoch=args.epoch and number == args.jobs - 1))
            (args.out / "warm_start.json").write_text(json.dumps(runs, indent=1) + "\n")
            kind = "cold" if number == 0 else "warm" if runs[-1]["pid"] == runs[-2]["pid"] else "in another process"
            told = ", ".join(f"{name} {seconds}" for name, seconds in runs[-1]["seconds"].items())
            print(f"RESULT {kind}: seconds to: {told}", flush=True)
    finally:
        host.close()


if __name__ == "__main__":
    main()
