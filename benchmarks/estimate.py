"""Estimates against what then happened: time after one warm job, and the peak of memory.

    python -m benchmarks.estimate --out DIR [--samples 48 96]

Runs an embedded Hone with SmolLM2-135M. For each job: the estimate, the job, and both side by side. The first job's
time is a guess, and only warms up; the second has another size.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from openai import OpenAI

from cli.embedded import EmbeddedHone
from cli.samples import stdlib_samples

MODEL = "smollm2-135m-instruct"
LONGEST_CHARACTERS = 500


def run(client: OpenAI, rows: list[str], seed: int) -> dict[str, Any]:
    """One job: what was estimated, and what was measured."""
    content = "".join(rows).encode()
    file_id = client.files.create(file=("train.jsonl", content), purpose="fine-tune").id
    hone = {"data": {"validation_fraction": 0.08}, "training": {"eval_steps": 3}}
    body = {"model": MODEL, "training_file": file_id, "seed": seed, "hone": hone}
    body["method"] = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": 8}}}
    estimate: Any = client.post("/fine_tuning/jobs/estimate", cast_to=object, body=body)
    job: Any = client.post("/fine_tuning/jobs", cast_to=object, body=body)
    while (job := client.get(f"/fine_tuning/jobs/{job['id']}", cast_to=object))["status"] not in (
        "succeeded",
        "failed",
    ):
        time.sleep(1)
    assert job["status"] == "succeeded", job["error"]
    measured, low, high = (
        job["hone"]["report"]["run"],
        estimate["time"]["low_seconds"],
        estimate["time"]["high_seconds"],
    )
    return {
        "samples": len(rows),
        "basis": estimate["time"]["basis"],
        "estimated_seconds": [low, high],
        "seconds": measured["seconds"],
        "seconds_ratio": round((low + high) / 2 / measured["seconds"], 3),
        "estimated_peak": estimate["memory"]["peak"],
        "peak": measured["peak_memory"],
        "peak_ratio": round(estimate["memory"]["peak"] / measured["peak_memory"], 3),
        "estimated_tokens": estimate["trained_tokens"],
        "tokens": job["trained_tokens"],
        "estimated_steps": estimate["steps"],
        "steps": job["hone"]["progress"]["total_steps"],
    }


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--out", type=Path, required=True)
    arguments.add_argument("--samples", type=int, nargs="+", default=[48, 96])
    given = arguments.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    samples = [one for one in stdlib_samples() if len(one.instruction) + len(one.output) <= LONGEST_CHARACTERS]
    rows = [json.dumps({"instruction": one.instruction, "output": one.output}) + "\n" for one in samples]
    found = []
    with EmbeddedHone() as hone, OpenAI(base_url=hone.base_url, api_key=hone.api_key) as client:
        for place, count in enumerate(given.samples):
            found.append(run(client, rows[place * 200 :][:count], place))
            print(json.dumps(found[-1], indent=2), flush=True)
    (given.out / "estimate.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
