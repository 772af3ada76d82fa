"""A step in passes."""

import random

import pytest
import torch

from worker.passes import Limit, Rows, StepCollator, split
from worker.sequences import collate


def rows(*lengths: int) -> list[dict[str, list[int]]]:
    return [{"input_ids": [number] * length, "labels": [number] * length} for number, length in enumerate(lengths)]


def lengths(passes) -> list[list[int]]:
    return [[len(row["input_ids"]) for row in one] for one in passes]


def test_passes_are_few_and_alike():
    assert lengths(split(rows(5, 5, 5, 5, 5, 5), Limit(25, 100))) == [[5, 5, 5], [5, 5, 5]]
    assert lengths(split(rows(3, 4, 5), Limit(100, 100))) == [[3, 4, 5]]
    assert lengths(split(rows(3, 4, 5), Limit(100, 2))) == [[3, 4], [5]]


def test_a_sample_over_the_limit_goes_alone():
    assert lengths(split(rows(3, 50, 3), Limit(10, 100))) == [[3], [50], [3]]


@pytest.mark.parametrize("seed", range(20))
def test_no_sample_is_lost_moved_or_over_the_limit(seed):
    chance = random.Random(seed)
    step = rows(*(min(512, int(chance.lognormvariate(5, 1)) + 1) for _ in range(64)))
    limit = Limit(chance.choice([512, 1000, 4096, 20_000]), chance.choice([3, 64]))
    passes = split(step, limit)
    assert [row for one in passes for row in one] == step
    for one in lengths(passes):
        assert sum(one) <= limit.tokens
        assert len(one) <= limit.samples


def test_a_step_is_counted_whole_and_trained_in_passes():
    collator = StepCollator(collate, Limit(8, 100))
    step = collator(rows(5, 4, 3))
    assert step["input_ids"].shape == step["labels"].shape == (1, 12)
    assert [one["lengths"] for one in step["passes"]] == [[5], [4, 3]]
    assert torch.equal(torch.cat([one["labels"] for one in step["passes"]], 1), step["labels"])
    assert sum(len(one["targets"]) for one in step["passes"]) == 9
    assert isinstance(step["rows"], Rows)
    collator.limit.tokens = 4
    assert len(collator.passes(step["rows"].rows)) == 3
