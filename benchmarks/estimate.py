"""Estimates against what then happened: time after one warm job, and the peak of memory.

    python -m benchmarks.estimate --out DIR [--samples 48 96] [--characters 500] [--precision auto] [--dpo]

Runs an embedded Hone with SmolLM2-135M. For each job: the estimate, the job, and both side by side. The first job's
time is a guess, and only warms up; the others have other sizes. `--dpo` trains on pairs, each with another's answer as
the one that is not preferred. Prints RESULT lines; DIR/estimate.json has all figures.
"""

import argparse
import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from openai import OpenAI

from cli.embedded import EmbeddedHone
from cli.samples import stdlib_samples

MODEL = "smollm2-135m-instruct"


def run(client: OpenAI, rows: list[str], seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """One job: what was estimated, and what was measured."""
    file_id = client.files.create(file=("train.jsonl", "".join(rows).encode()), purpose="fine-tune").id
    training = {"eval_steps": 3, "precision": given.precision}
    body: dict[str, Any] = {"model": MODEL, "training_file": file_id, "seed": seed}
    body["hone"] = {"data": {"validation_fraction": 0.08}, "training": training}
    method = "dpo" if given.dpo else "supervised"
    body["method"] = {"type": method, method: {"hyperparameters": {"n_epochs": 1, "batch_size": 8}}}
    estimate: Any = client.post("/fine_tuning/jobs/estimate", cast_to=object, body=body)
    job: Any = client.post("/fine_tuning/jobs", cast_to=object, body=body)
    while (job := client.get(f"/fine_tuning/jobs/{job['id']}", cast_to=object))["status"] not in (
        "succeeded",
        "failed",
    ):
        time.sleep(1)
    assert job["status"] == "succeeded", job["error"]
    return {"samples": len(rows), **compare(estimate, job)}


def compare(estimate: dict[str, Any], job: dict[str, Any]) -> dict[str, Any]:
    """Both sides of each figure; ratios are of the estimate to what was measured."""
    measured, told = job["hone"]["report"]["run"], estimate["time"]
    low, high = told["low_seconds"], told["high_seconds"]
    return {
        "basis": told["basis"],
        "precision": estimate["hone"]["training"]["precision"],
        "base_loaded": told["base_loaded"],
        "warm": measured["warm"],
        "estimated_seconds": [low, high],
        "seconds": measured["seconds"],
        "seconds_ratio": round((low + high) / 2 / measured["seconds"], 3),
        "estimated_load_seconds": told["load_seconds"],
        "load_seconds": measured["load_seconds"],
        "estimated_peak": estimate["memory"]["peak"],
        "peak": measured["peak_memory"],
        "peak_ratio": round(estimate["memory"]["peak"] / measured["peak_memory"], 3),
        "estimated_tokens": estimate["trained_tokens"],
        "tokens": job["trained_tokens"],
        "estimated_steps": estimate["steps"],
        "steps": job["hone"]["progress"]["total_steps"],
    }


def make_rows(given: argparse.Namespace) -> list[str]:
    """Lines of a training file."""
    samples = [one for one in stdlib_samples() if len(one.instruction) + len(one.output) <= given.characters]
    if not given.dpo:
        return [json.dumps({"instruction": one.instruction, "output": one.output}) + "\n" for one in samples]
    return [
        json.dumps(
            {
                "input": {"messages": [{"role": "user", "content": one.instruction}]},
                "preferred_output": [{"role": "assistant", "content": one.output}],
                "non_preferred_output": [{"role": "assistant", "content": other.output}],
            }
        )
        + "\n"
        for one, other in pairwise(samples)
    ]


def main() -> None:
    """Jobs one after another, each compared with its estimate."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", type=Path, required=True)
    arguments.add_argument("--samples", type=int, nargs="+", default=[48, 96])
    arguments.add_argument("--characters", type=int, default=500, help="of the longest sample")
    arguments.add_argument("--precision", default="auto")
    arguments.add_argument("--dpo", action="store_true")
    given = arguments.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    rows, found = make_rows(given), []
    with EmbeddedHone() as hone, OpenAI(base_url=hone.base_url, api_key=hone.api_key) as client:
        for place, count in enumerate(given.samples):
            found.append(run(client, rows[place * 200 :][:count], place, given))
            print(f"RESULT {json.dumps(found[-1])}", flush=True)
    (given.out / "estimate.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
