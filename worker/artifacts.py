"""What a fine-tune leaves behind: one zip with the adapter and its papers, and the step metrics as CSV beside it."""

import csv
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from core.resolve import Resolved
from worker.base_models import fingerprint
from worker.checkpoints import sha256_of, write_manifest
from worker.plots import plot_codebleu, plot_lengths, plot_loss
from worker.progress import REWARDS
from worker.protocol import TrainingInput

#: OpenAI's columns first, as its result files have them, then ours.
CSV_COLUMNS = (
    "step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy",
    "learning_rate", "grad_norm", "tokens_per_second", "epoch", "codebleu",
)  # fmt: skip

History = Mapping[int, Mapping[str, float]]


def save(
    job: TrainingInput,
    folder: Path,
    *,
    resolved: Resolved,
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    history: History,
    lengths: list[int],
    report: dict[str, Any],
) -> None:
    """Write a job's artifacts; the manifest records what they were made from."""
    folder.mkdir(parents=True, exist_ok=True)
    write_artifacts(
        folder,
        job=job,
        resolved=resolved,
        model=model,
        tokenizer=tokenizer,
        history=history,
        lengths=lengths,
        record={
            "job_id": job.job_id,
            "fine_tuned_model": job.fine_tuned_model,
            "spec": job.spec.model_dump(mode="json"),
            "resolved": resolved.model_dump(mode="json"),
            "base_model": {"name": job.spec.model, "fingerprint": fingerprint(job.base_model, job.cache)},
            "training_file_sha256": sha256_of(job.train_file),
            "validation_file_sha256": sha256_of(job.validation_file) if job.validation_file else None,
            "seed": job.spec.seed,
            **report,
        },
    )


def write_artifacts(
    folder: Path,
    *,
    job: TrainingInput,
    resolved: Resolved,
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    history: History,
    lengths: list[int],
    record: dict[str, Any],
) -> None:
    """Write ``step_metrics.csv`` and ``adapter.zip`` into ``folder``. ``record`` goes into the manifest."""
    adapter = folder / "adapter"
    model.save_pretrained(adapter, safe_serialization=True)
    tokenizer.save_pretrained(adapter)
    write_step_metrics(history, adapter / "step_metrics.csv")
    plot_loss(history, adapter / "loss.png", title=f"{job.spec.model}: {resolved.total_steps} steps of QLoRA")
    if any("codebleu" in row for row in history.values()):
        plot_codebleu(
            history, adapter / "codebleu_steps.png", title=f"{job.spec.model}: CodeBLEU of validation answers"
        )
    plot_lengths(lengths, resolved.max_seq_length, adapter / "lengths.png")
    (adapter / "README.md").write_text(model_card(job, resolved, history, record), encoding="utf-8")
    write_manifest(adapter, record)
    zip_folder(adapter, folder / "adapter.zip")
    shutil.copy(adapter / "step_metrics.csv", folder)
    shutil.rmtree(adapter)


def write_step_metrics(history: History, path: Path) -> None:
    """One row a step from 1 on, figures that it does not have left empty; rewards come last, if there are any."""
    columns = [*CSV_COLUMNS, *(name for name in REWARDS if any(name in row for row in history.values()))]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for step, row in sorted(history.items()):
            if step > 0:
                writer.writerow([step, *(row.get(column, "") for column in columns[1:])])


def zip_folder(folder: Path, path: Path) -> None:
    """Store a folder's files in a zip, uncompressed (weights do not shrink) and undated: same in, same out."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(folder.iterdir()):
            entry = zipfile.ZipInfo(file.name, date_time=(1980, 1, 1, 0, 0, 0))
            with archive.open(entry, "w", force_zip64=True) as target, file.open("rb") as source:
                while chunk := source.read(2**20):
                    target.write(chunk)


_CARD = """\
---
library_name: peft
base_model: {base_model}
tags: [lora, qlora, hone]
---

# {fine_tuned_model}

A LoRA adapter for `{base_model}`, trained by Hone in job `{job_id}`.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained(BASE)  # the base model's folder or repository
model = PeftModel.from_pretrained(base, "adapter")  # the folder this file lies in
tokenizer = AutoTokenizer.from_pretrained("adapter")
```

## How it was made

- {samples:,} samples, {tokens:,} tokens an epoch, cut at {cut}; prompt template `{template}`
- {steps} steps of {batch} samples, {epochs} epoch(s), learning rate {rate:g}, seed {seed}
- LoRA r={r}, alpha={alpha}, dropout={dropout:g}; base in {quantization}, compute in {precision}
- {trainable:,} of {parameters:,} parameters trained ({percent:.2f} %)
{losses}

`manifest.json` has every setting, version and hash. The adapter was trained against the 4-bit base: merge it into that,
dequantized, for exactly these losses.
"""


def model_card(job: TrainingInput, resolved: Resolved, history: History, record: dict[str, Any]) -> str:
    """The adapter's README.md: what it is, how to use it, how it was made."""
    data, model, lora = record["dataset"], record["model"], job.spec.hone.lora
    return _CARD.format(
        base_model=job.spec.model,
        fine_tuned_model=job.fine_tuned_model,
        job_id=job.job_id,
        samples=data["train_samples"],
        tokens=data["tokens_per_epoch"],
        cut=resolved.max_seq_length,
        template=resolved.prompt_template,
        steps=resolved.total_steps,
        batch=resolved.batch_size,
        epochs=resolved.n_epochs,
        rate=resolved.learning_rate,
        seed=job.spec.seed,
        r=lora.r,
        alpha=lora.alpha,
        dropout=lora.dropout,
        quantization=job.spec.hone.quantization.type,
        precision=resolved.precision,
        trainable=model["trainable_parameters"],
        parameters=model["parameters"],
        percent=model["trainable_percent"],
        losses="\n".join(_first_and_last(history)),
    )


def _first_and_last(history: History) -> list[str]:
    lines = []
    for column, name in (("train_loss", "training loss"), ("valid_loss", "validation loss"), ("codebleu", "CodeBLEU")):
        values = [row[column] for _, row in sorted(history.items()) if column in row]
        if values:
            lines.append(f"- {name} {values[0]:.3f} → {values[-1]:.3f}")
    return lines
