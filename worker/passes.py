"""A step's samples in passes: as many tokens at once as the memory plan allows."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

#: A sample as ``worker.sequences.to_dataset`` makes it.
Row = dict[str, list[int]]
#: Makes one row of many: ``worker.sequences.collate``, or TRL's collator.
Collate = Callable[[list[Row]], dict[str, Any]]
#: Which of a step's samples are this process's (``worker.ranks``).
Share = Callable[[list[Row]], list[Row]]
#: Passes of one step are made alike within this share of what is left to the limit.
_TRIES = 8


@dataclass
class Limit:
    """How large a pass may be; a sample that is longer goes alone."""

    tokens: int
    samples: int


@dataclass(frozen=True)
class Rows:
    """A step's samples and the tokens by which they were cut. No tensor, so that nothing moves it to a device."""

    rows: list[Row]
    tokens: int


def split(rows: list[Row], limit: Limit) -> list[list[Row]]:
    """The samples in order, in as few passes as the limit allows, of about as many tokens each."""
    lengths = [len(row["input_ids"]) for row in rows]
    count = len(_cut(lengths, limit.tokens, limit.samples))
    even = math.ceil(sum(lengths) / count)
    for part in range(_TRIES):
        tokens = even + (limit.tokens - even) * part // _TRIES
        if tokens <= limit.tokens and len(cuts := _cut(lengths, tokens, limit.samples)) == count:
            break
    else:
        cuts = _cut(lengths, limit.tokens, limit.samples)
    return [rows[first:last] for first, last in cuts]


def _cut(lengths: list[int], tokens: int, samples: int) -> list[tuple[int, int]]:
    """First and last (excluded) sample of each pass, filled one after the other."""
    cuts, first, room = [], 0, tokens
    for number, length in enumerate(lengths):
        if number > first and (length > room or number - first >= samples):
            cuts.append((first, number))
            first, room = number, tokens
        room -= length
    return [*cuts, (first, len(lengths))]


class StepCollator:
    """Collates a step for Trainer, which counts its tokens and labels, and beside that in ``passes``."""

    def __init__(self, collate: Collate, limit: Limit, share: Share = list) -> None:
        self.collate = collate
        self.limit = limit
        self.share = share

    def __call__(self, rows: list[Row]) -> dict[str, Any]:
        """``input_ids`` and ``labels`` [1, T] of the whole step; ``passes``, each as collated; ``rows``."""
        whole = self.collate(rows)
        return {
            "input_ids": whole["input_ids"],
            "labels": whole["labels"],
            "passes": self.passes(rows),
            "rows": Rows(rows, self.limit.tokens),
        }

    def passes(self, rows: list[Row]) -> list[dict[str, Any]]:
        """Each pass of this process's share of a step, collated."""
        mine = self.share(rows)
        return [self.collate(part) for part in split(mine, self.limit)] if mine else []
