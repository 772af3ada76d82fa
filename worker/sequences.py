"""From samples to sequences: encoded, measured, split, cut, and handed over as a dataset."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from core.dataset import Sample, read_samples
from core.errors import TrainingError
from core.specs import PromptTemplate
from worker.prompts import Encoded, encode_samples

Ints = NDArray[np.int64]
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
    return list(encode_samples(samples, template, tokenizer, system_prompt))


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
    ids, labels, lengths = _columns(encoded, max_seq_length)
    if not lengths:
        raise TrainingError(
            f"No sample has a trained token within {max_seq_length} tokens: every prompt fills the whole length. "
            "Raise hone.data.max_seq_length or shorten the prompts.",
            code="no_trained_tokens",
            param="hone.data.max_seq_length",
        )
    ends = pa.array(np.cumsum([0, *lengths]), pa.int64())
    columns = {"input_ids": ids, "labels": labels}
    table = pa.table({name: pa.LargeListArray.from_arrays(ends, pa.array(values)) for name, values in columns.items()})
    # Its name among datasets' cached results, of which there are none here: they would make it from all that it holds.
    return Dataset(table, fingerprint=uuid4().hex)


def _columns(encoded: list[Encoded], max_seq_length: int) -> tuple[Ints, Ints, list[int]]:
    """Tokens and labels of all sequences, end to end, and the sequences' lengths."""
    ids: list[int] = []
    trained: list[bool] = []
    lengths = []
    for one in encoded:
        kept = one.trained[:max_seq_length]
        if True in kept[1:]:  # nothing predicts the first token
            ids += one.input_ids[:max_seq_length]
            trained += kept
            lengths.append(len(kept))
    tokens = np.array(ids, np.int64)
    return tokens, np.where(np.array(trained, np.bool_), tokens, IGNORED), lengths


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
    labels = np.asarray(pc.list_flatten(train.data["labels"]))
    kept, trained = len(labels), int((labels != IGNORED).sum())
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
