"""From samples to sequences: encoded, measured, split, cut, and handed over as a dataset."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from core.dataset import Sample, read_samples
from core.errors import TrainingError
from core.specs import PromptTemplate
from worker import pulse
from worker.prompts import Encoded, encode_sample

#: Label of a token that does not count in the loss.
IGNORED = -100


@dataclass(frozen=True)
class Sequences:
    """Training and validation sequences before cutting; ``lengths`` are in tokens, of the training part."""

    train: list[Encoded]
    validation: list[Encoded]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each training sequence."""
        return [len(encoded.input_ids) for encoded in self.train]


def read_file(path: Path, max_line_bytes: int) -> list[Sample]:
    """The samples of a JSON lines file. Raises DatasetError."""
    with path.open("rb") as file:
        return list(read_samples(iter(lambda: file.read(2**20), b""), max_line_bytes))


def encode(
    samples: Sequence[Sample], template: PromptTemplate, tokenizer: PreTrainedTokenizerBase, system_prompt: str | None
) -> list[Encoded]:
    """Each sample as tokens, uncut."""
    encoded = []
    for sample in samples:
        encoded.append(encode_sample(sample, template, tokenizer, system_prompt))
        pulse.beat()
    return encoded


def hold_out(encoded: list[Encoded], fraction: float, seed: int) -> Sequences:
    """Split off a validation part: the same samples for the same seed, at least one unless ``fraction`` is 0."""
    if fraction == 0 or len(encoded) < 2:
        return Sequences(encoded, [])
    count = max(1, round(fraction * len(encoded)))
    held_out = set(random.Random(seed).sample(range(len(encoded)), count))
    return Sequences(
        [one for index, one in enumerate(encoded) if index not in held_out],
        [one for index, one in enumerate(encoded) if index in held_out],
    )


def to_dataset(encoded: list[Encoded], max_seq_length: int) -> Dataset:
    """Sequences cut on the right, as columns ``input_ids`` and ``labels``.

    A sequence that is left without a trained token is dropped. Raises TrainingError when none is left.
    """
    rows = [row for row in (_row(one, max_seq_length) for one in encoded) if row is not None]
    if not rows:
        raise TrainingError(
            f"No sample has a trained token within {max_seq_length} tokens: every prompt fills the whole length. "
            "Raise hone.data.max_seq_length or shorten the prompts.",
            code="no_trained_tokens",
            param="hone.data.max_seq_length",
        )
    return Dataset.from_list(rows)


def _row(one: Encoded, max_seq_length: int) -> dict[str, list[int]] | None:
    ids, trained = one.input_ids[:max_seq_length], one.trained[:max_seq_length]
    if not any(trained[1:]):  # nothing predicts the first token
        return None
    return {"input_ids": ids, "labels": [token if keep else IGNORED for token, keep in zip(ids, trained, strict=True)]}


def collate(rows: list[dict[str, list[int]]]) -> dict[str, Any]:
    """Samples end to end in one row: ``input_ids``, ``labels`` and ``position_ids`` [1, T], ``bounds`` [samples + 1].

    ``trained`` [N] are the places whose next token is trained, ``targets`` [N] these tokens, and ``lengths`` the
    samples' tokens, as a list. Nothing predicts a sample's first token, so its label does not count.
    """
    ids = np.concatenate([row["input_ids"] for row in rows])
    labels = np.concatenate([[IGNORED, *row["labels"][1:]] for row in rows])
    lengths = [len(row["input_ids"]) for row in rows]
    targets = np.flatnonzero(labels != IGNORED)
    return {
        "input_ids": torch.from_numpy(ids)[None],
        "labels": torch.from_numpy(labels)[None],
        "position_ids": torch.from_numpy(np.concatenate([np.arange(length) for length in lengths]))[None],
        "bounds": torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32)),
        "trained": torch.from_numpy(targets - 1),
        "targets": torch.from_numpy(labels[targets]),
        "lengths": lengths,
    }


def length_report(
    sequences: Sequences, train: Dataset, validation: Dataset | None, max_seq_length: int
) -> dict[str, Any]:
    """What the data is like, in samples and tokens, before and after the cut."""
    lengths = np.array(sequences.lengths)
    quartiles = np.percentile(lengths, [25, 50, 75, 90])
    kept = sum(len(ids) for ids in train["input_ids"])
    trained = sum(token != IGNORED for labels in train["labels"] for token in labels)
    return {
        "train_samples": len(train),
        "validation_samples": len(validation) if validation is not None else 0,
        "tokens": {
            "mean": round(float(lengths.mean()), 1),
            "quartile_1": int(quartiles[0]),
            "median": int(quartiles[1]),
            "quartile_3": int(quartiles[2]),
            "percentile_90": int(quartiles[3]),
            "longest": int(lengths.max()),
            "total": int(lengths.sum()),
        },
        "max_seq_length": max_seq_length,
        "cut_samples": int((lengths > max_seq_length).sum()),
        "dropped_samples": len(lengths) - len(train),
        "tokens_per_epoch": kept,
        "trained_tokens_per_epoch": trained,
        "trained_share": round(trained / kept, 4),
    }
