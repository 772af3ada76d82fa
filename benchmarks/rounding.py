"""How far bfloat16 takes a fine-tune from float32, by ours and by eager PEFT: two steps of SmolLM2 (real weights).

    python -m benchmarks.rounding [--tokens 200]

The first step has a learning rate of 0, as after a warm-up's start; the second, at 0.001, is Adam's first update at the
full rate, which takes little more of a gradient than its sign. Prints the losses of both steps and of a third batch
after them, and the gradient's distance, each against eager float32. Runs on a processor that computes bfloat16.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.main_job import write_samples
from core.catalogue import find_base_model, load_catalogue
from core.settings import Settings
from core.specs import LoraSpec, Precision, QuantizationSpec
from worker.base_models import load_base, load_tokenizer
from worker.fast.model import FastModel
from worker.sequences import IGNORED, collate, encode, read_file, to_dataset
from worker.trainer import add_adapter

MODEL = "smollm2-135m-instruct"
#: (name, precision, on the fast path), the reference first.
WAYS: tuple[tuple[str, Precision, bool], ...] = (
    ("eager, float32", "float32", False),
    ("Hone, float32", "float32", True),
    ("Hone, bfloat16", "bfloat16", True),
    ("eager, bfloat16", "bfloat16", False),
)
Rows = list[dict[str, list[int]]]


def eager_loss(model: Any, rows: Rows, *, mixed: bool) -> Tensor:
    """Mean over the trained tokens, by PEFT's layers, a sample at a time."""
    losses, count = [], 0
    for row in rows:
        labels = torch.tensor(row["labels"][1:])
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1].float()
        losses.append(torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum"))
        count += int((labels != IGNORED).sum())
    return torch.stack(losses).sum() / count


def fast_loss(fast: FastModel, rows: Rows) -> Tensor:
    """The same by the fast path."""
    batch = collate(rows)
    return fast.loss(batch)[0] / len(batch["targets"])


def measure(
    precision: Precision, batches: list[Rows], cache: Path, *, on_fast_path: bool
) -> tuple[list[float], Tensor]:
    """Losses of the three batches, and the second one's gradient."""
    base = load_base(find_base_model(load_catalogue(Settings()), MODEL), cache, QuantizationSpec(), precision)
    model = add_adapter(base, LoraSpec(r=16, alpha=32, dropout=0.0), name=MODEL, seed=0)
    model.train()
    fast = FastModel(model) if on_fast_path else None

    def loss_of(rows: Rows) -> Tensor:
        return fast_loss(fast, rows) if fast else eager_loss(model, rows, mixed=precision == "bfloat16")

    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.0)
    losses, gradient = [], torch.empty(0)
    for rows, rate in zip(batches[:2], (0.0, 1e-3), strict=True):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss = loss_of(rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        losses.append(float(loss))
        gradient = torch.cat([p.grad.flatten() for p in trained if p.grad is not None])
    with torch.no_grad():
        losses.append(float(loss_of(batches[2])))
    return losses, gradient


def take(rows: Rows, first: int, tokens: int) -> Rows:
    """Rows from ``first`` on with at least ``tokens`` tokens together."""
    taken: Rows = []
    while sum(len(row["input_ids"]) for row in taken) < tokens:
        taken.append(rows[first + len(taken)])
    return taken


def main() -> None:
    """Measure each way; a RESULT line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--cache", type=Path, default=Settings().home / "models")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path, _ = write_samples(Path(folder), 500)
        samples = read_file(path, 2**20)[:400]
    tokenizer = load_tokenizer(find_base_model(load_catalogue(Settings()), MODEL), args.cache)
    rows: Rows = list(to_dataset(encode(samples, "chat", tokenizer, None), 512))
    batches = [take(rows, first, args.tokens) for first in (0, 100, 200)]
    want: tuple[list[float], Tensor] | None = None
    for name, precision, on_fast_path in WAYS:
        losses, gradient = found = measure(precision, batches, args.cache, on_fast_path=on_fast_path)
        want = want or found
        result = {
            "way": name,
            "losses": losses,
            "percent": [round(100 * (a - b) / b, 4) for a, b in zip(losses, want[0], strict=True)],
            "gradient": float(torch.linalg.norm(gradient - want[1]) / torch.linalg.norm(want[1])),
        }
        print("RESULT " + json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
