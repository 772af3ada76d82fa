"""The main job on this machine, without a server: fine-tune a base model, then score base and tuned by CodeBLEU.

    python -m benchmarks.main_job --train train.jsonl --items items.jsonl --out DIR [--model NAME] [--set hone.x.y=JSON
    ...]

Runs the worker's own two programs, prints one RESULT line, and leaves curves, pictures and scores in DIR. Without
--train and --items the samples are the standard library's functions, as in `hone demo`.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.catalogue import find_base_model, load_catalogue
from core.settings import Settings
from core.specs import CodeBleuCriterion, EvaluationSpec, FineTuneSpec, TemplateMessage
from worker.protocol import Done, EvaluationInput, Started, Step, TrainingInput, parse_line


def run_child(module: str, source: Path, out: Path, *, show: bool, env: Mapping[str, str] | None = None) -> list[Any]:
    """Run one of the worker's programs, with ``env`` beside this process's variables, and return its lines."""
    lines = []
    with subprocess.Popen(
        [sys.executable, "-m", module, str(source), str(out)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | dict(env or {}),
    ) as child:
        assert child.stdout is not None
        for text in child.stdout:
            lines.append(parse_line(text))
            if show:
                print(text.strip()[:200], file=sys.stderr, flush=True)
    if child.returncode or not isinstance(lines[-1], Done):
        raise SystemExit(f"{module} ended with {child.returncode}")
    return lines


def set_option(spec: dict[str, Any], assignment: str) -> None:
    """Apply ``a.b.c=JSON`` to a spec."""
    path, _, value = assignment.partition("=")
    *parents, last = path.split(".")
    for name in parents:
        spec = spec.setdefault(name, {})
    spec[last] = json.loads(value)


def train(args: argparse.Namespace) -> tuple[dict[str, Any], Path]:
    """Fine-tune; returns the figures and the folder of the unpacked adapter."""
    spec: dict[str, Any] = {"model": args.model, "training_file": "file-train"}
    for assignment in args.set:
        set_option(spec, assignment)
    job = TrainingInput(
        job_id="ftjob-benchmark",
        fine_tuned_model=f"ft:{args.model}:hone::benchmark",
        spec=FineTuneSpec.model_validate(spec),
        base_model=find_base_model(load_catalogue(Settings()), args.model),
        cache=args.cache,
        train_file=args.train,
    )
    source = args.out / "train.json"
    source.write_text(job.model_dump_json())
    began = time.monotonic()
    lines = run_child("worker.train", source, args.work / "train", show=args.verbose)
    seconds = time.monotonic() - began
    adapter = args.work / "adapter"
    with zipfile.ZipFile(args.work / "train" / "artifacts" / "adapter.zip") as archive:
        archive.extractall(adapter)
    for name in ("step_metrics.csv", "loss.png", "lengths.png", "manifest.json"):
        shutil.copy(adapter / name, args.out)
    started = next(line for line in lines if isinstance(line, Started))
    steps = [line for line in lines if isinstance(line, Step)]
    speeds = [line.metrics["tokens_per_second"] for line in steps if "tokens_per_second" in line.metrics]
    valid = [line.metrics["valid_loss"] for line in steps if "valid_loss" in line.metrics]
    figures = {
        "seconds": round(seconds, 1),
        "tokens_per_second_median": round(statistics.median(speeds)),
        "train_loss_first_last": [steps[1].metrics.get("train_loss"), args_last(steps, "train_loss")],
        "valid_loss_first_last": [valid[0], valid[-1]] if valid else None,
        "resolved": started.resolved.model_dump(exclude={"reasons"}),
        "report": lines[-1].report,
    }
    return figures, adapter


def args_last(steps: list[Step], name: str) -> float | None:
    """The last value of a figure."""
    return next((line.metrics[name] for line in reversed(steps) if name in line.metrics), None)


def evaluate(args: argparse.Namespace, adapter: Path) -> dict[str, Any]:
    """Score base and tuned; returns the figures."""
    job = EvaluationInput(
        job_id="evalrun_benchmark",
        spec=EvaluationSpec(
            model="ft:benchmark",
            base_model=args.model,
            items_file="file-items",
            messages=(TemplateMessage(role="user", content="{{item.instruction}}"),),
            criteria=(
                CodeBleuCriterion(
                    type="code_bleu", name="code", input="{{sample.output_text}}", reference="{{item.completion}}"
                ),
            ),
        ),
        base_model=find_base_model(load_catalogue(Settings()), args.model),
        cache=args.cache,
        items_file=args.items,
        adapter=adapter,
        prompt_template="chat",
    )
    source = args.out / "evaluate.json"
    source.write_text(job.model_dump_json())
    began = time.monotonic()
    lines = run_child("worker.evaluate", source, args.work / "evaluate", show=args.verbose)
    for name in ("scores.json", "codebleu.png"):
        shutil.copy(args.work / "evaluate" / "artifacts" / name, args.out)
    return {"seconds": round(time.monotonic() - began, 1), **lines[-1].report}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--train", type=Path)
    parser.add_argument("--items", type=Path)
    parser.add_argument("--held-out", type=int, default=500)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, help="folder for checkpoints and answers (default: OUT/work)")
    parser.add_argument("--cache", type=Path, default=Settings().home / "models")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=JSON")
    parser.add_argument("--no-evaluation", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_args()
    args.work = args.work or args.out / "work"
    for folder in (args.out, args.work):
        folder.mkdir(parents=True, exist_ok=True)
    if args.train is None:
        args.train, args.items = write_samples(args.out, args.held_out)
    training, adapter = train(args)
    print("RESULT " + json.dumps({"training": training}), flush=True)
    if not args.no_evaluation:
        print("RESULT " + json.dumps({"evaluation": evaluate(args, adapter)}), flush=True)


def write_samples(folder: Path, held_out: int) -> tuple[Path, Path]:
    """The standard library's functions: training samples and held-out items."""
    from cli.samples import split, stdlib_samples

    train_samples, held = split(stdlib_samples(), held_out)
    train_path, items_path = folder / "train.jsonl", folder / "items.jsonl"
    train_path.write_text(
        "".join(json.dumps({"instruction": one.instruction, "output": one.output}) + "\n" for one in train_samples)
    )
    items_path.write_text(
        "".join(json.dumps({"item": {"instruction": one.instruction, "completion": one.output}}) + "\n" for one in held)
    )
    return train_path, items_path


if __name__ == "__main__":
    main()
