"""The demo: a real model, fine-tuned by QLoRA and evaluated by CodeBLEU, through the API and OpenAI's own client alone.

    hone demo --out demo-out

Hone runs embedded in a temporary folder; everything that a job leaves behind is downloaded into ``demo-out/``.
"""

import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from openai import OpenAI, OpenAIError
from rich.table import Table

from cli.client import evaluate, fetch_results, fine_tune, upload
from cli.console import console, say
from cli.embedded import DemoError, EmbeddedHone
from cli.report import PART_TITLES, DemoRun, criterion_of, difference_row, sides, write_report
from cli.samples import Sample, split, stdlib_samples
from worker.bundles import BundleError, unpack, verify

MODEL = "smollm2-135m-instruct"

# What fits into ten minutes on two cores. A sample of at most 500 characters has 104 tokens on average with its
# template, so 144 samples make 15,000 tokens. That is 250 s of training at 60 tokens/s (40 to 95 were measured on two
# AVX2 cores in float32), and 100 s at the 150 tokens/s of two cores with AVX512-BF16.
TRAIN_SAMPLES = 144
LONGEST_CHARACTERS = 500
# Base and tuned model each answer 24 held-out questions with at most 128 tokens: 30 s a model where nothing else runs.
EVAL_SAMPLES = 24
MAX_ANSWER_TOKENS = 128
#: Held out of the library before anything is chosen, so that --eval-samples never changes what is trained on.
HELD_OUT = 1000

#: What has to be in demo-out/ at the end, besides the report.
ADAPTER_FILES = (
    "adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "README.md", "step_metrics.csv", "loss.png",
    "lengths.png", "manifest.json",
)  # fmt: skip
RESULTS = ("step_metrics.csv", "adapter.zip", "scores.json", "codebleu.png", "items.jsonl")


@dataclass(frozen=True)
class Size:
    """How many samples are trained on, and how many held-out ones are evaluated."""

    train: int = TRAIN_SAMPLES
    held_out: int = EVAL_SAMPLES


@dataclass
class Clock:
    """Where the time went: seconds by step, in order."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, step: str) -> Iterator[None]:
        """Time a step; an error of the client names the step that it happened in."""
        began = time.monotonic()
        try:
            yield
        except OpenAIError as error:
            raise DemoError(f"{step}: {error}") from error
        finally:
            self.seconds[step] = time.monotonic() - began


def run(out: Path, size: Size) -> int:
    """Run the demo; the exit code is 0 only when every step went well and every file is there and readable."""
    signal.signal(signal.SIGTERM, _interrupt)  # stopped by a supervisor: the same way out as Ctrl-C
    hone = None
    try:
        with EmbeddedHone() as hone:
            story(hone, out, size)
    except KeyboardInterrupt:
        say("\nStopped. Nothing was left running.")
        return 130
    except (DemoError, BundleError, OSError) as error:
        say(f"\nThe demo failed: {error}", style="bold red")
        if hone is not None:
            say(f"What ran is kept in {hone.home}; logs: {hone.logs}")
        return 1
    return 0


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def story(hone: EmbeddedHone, out: Path, size: Size) -> None:
    """Upload, fine-tune, evaluate, download, report. Raises DemoError."""
    clock = Clock()
    client = OpenAI(base_url=hone.base_url, api_key=hone.api_key)
    say(f"Hone is at {hone.base_url}; this demo talks to it as any client would.", style="bold")

    with clock.measure("making the samples"):
        train, held_out = choose_samples(size)
    say(f"{len(train)} functions of Python {sys.version.split()[0]}'s library to train on, {len(held_out)} held out")

    with clock.measure("uploading"):
        train_file = upload(client, "train.jsonl", "fine-tune", [sample.training_line() for sample in train])
        items_file = upload(client, "held-out.jsonl", "evals", [sample.item_line() for sample in held_out])

    with clock.measure("fine-tuning"):
        job, steps = fine_tune(client, MODEL, train_file)
    with clock.measure("evaluating base and tuned"):
        assert job.fine_tuned_model is not None
        evaluation = evaluate(client, job.fine_tuned_model, items_file, MAX_ANSWER_TOKENS)

    with clock.measure("downloading"):
        fresh_folder(out)
        fetch_results(client, job, evaluation, out)
        check_results(out)

    demo = DemoRun(job.model_dump(), evaluation.model_dump(), steps, clock.seconds)
    write_report(out, demo)
    show(out, demo)


def choose_samples(size: Size) -> tuple[list[Sample], list[Sample]]:
    """Samples short enough for two cores, to train on and held out. Raises DemoError when there are too few."""
    to_train, to_hold = split(stdlib_samples(), HELD_OUT)
    train, held_out = ([s for s in part if s.characters <= LONGEST_CHARACTERS] for part in (to_train, to_hold))
    if size.train > len(train) or size.held_out > len(held_out):
        raise DemoError(f"at most {len(train)} samples can be trained on and {len(held_out)} evaluated.")
    return train[: size.train], held_out[: size.held_out]


def fresh_folder(out: Path) -> None:
    """Make the folder, without what an earlier demo left there; nothing else in it is touched."""
    out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(out / "adapter", ignore_errors=True)
    for name in (*RESULTS, "loss.png", "lengths.png", "manifest.json", "report.md"):
        (out / name).unlink(missing_ok=True)


def check_results(out: Path) -> None:
    """Unpack the adapter and look at every file. Raises DemoError or BundleError when one is missing or broken."""
    _require(out, RESULTS)
    unpack(out / "adapter.zip", out / "adapter")
    verify(out / "adapter")
    _require(out / "adapter", ADAPTER_FILES)
    if not any(tensor.endswith("lora_B.weight") for tensor in tensor_names(out / "adapter" / ADAPTER_FILES[0])):
        raise DemoError("adapter_model.safetensors holds no LoRA tensors.")
    for name in ("loss.png", "lengths.png", "manifest.json"):
        shutil.copy(out / "adapter" / name, out / name)


def _require(folder: Path, names: tuple[str, ...]) -> None:
    missing = [name for name in names if not (folder / name).is_file() or not (folder / name).stat().st_size]
    if missing:
        raise DemoError(f"missing or empty in {folder}: {', '.join(missing)}")


def tensor_names(path: Path) -> list[str]:
    """The tensors of a safetensors file. Raises DemoError when it can't be read."""
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415 - asked for once, at the end

    try:
        with safe_open(path, framework="numpy") as file:
            return [str(name) for name in file.keys()]  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise DemoError(f"{path.name} can't be read: {error}") from error


def show(out: Path, demo: DemoRun) -> None:
    """End with the table and the paths."""
    criterion = criterion_of(demo.scores)
    table = Table("", *PART_TITLES.values(), title=f"CodeBLEU over {demo.scores['samples']} held-out functions")
    for name, figures in sides(criterion):
        table.add_row(name, *(_figure(figures[part]) for part in PART_TITLES))
    table.add_row("difference", *difference_row(criterion))
    console.print(table)
    say(criterion["verdict"]["sentence"], style="bold")
    for name, what in (
        ("report.md", "what ran, on what, and what came out"),
        ("adapter/", "the adapter: peft.PeftModel.from_pretrained(base, 'adapter')"),
        ("items.jsonl", "every prompt, answer and score"),
        ("scores.json", "the scores"),
    ):
        say(f"  {out / name!s:28} {what}")


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
