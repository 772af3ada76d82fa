"""The memory plan: the fastest that fits, the next smaller one, and what would fit when nothing does."""

from itertools import pairwise

import pytest

from core.plan import REPLAYED, Lengths, MemoryPlan, plan_memory, predict_pass, step_down
from core.specs import FineTuneSpec, HoneSpec, LoraSpec, QuantizationSpec, TrainingSpec
from tests.core.shapes import LLAMA_7B, SMOLLM2

SEED = Lengths(mean=207, longest=512, deviation=155)


def make_spec(**parts) -> FineTuneSpec:
    return FineTuneSpec(model="m", training_file="f", hone=HoneSpec(**parts))


def plan(gigabytes: float, spec: FineTuneSpec | None = None, **changes) -> MemoryPlan:
    options = {"batch_size": 64, "device": "cuda", "precision": "bfloat16", "lengths": SEED}
    return plan_memory(LLAMA_7B, spec or make_spec(), available=int(gigabytes * 1e9), **(options | changes))


def test_with_room_all_of_it_is_used():
    made = plan(80)
    assert (made.pass_tokens, made.resident, made.recomputes) == (16_384, True, False)
    assert made.keep == {"all": 32, "attention": 0, "input": 0}


def test_a_step_of_few_tokens_asks_for_no_larger_pass():
    assert plan(80, batch_size=2).pass_tokens == 2 * 512
    assert plan(80, batch_size=16).pass_tokens == 16 * 207 + 3 * 155 * 4


def test_a_small_models_passes_are_small_enough_to_be_replayed():
    made = plan_memory(
        SMOLLM2, make_spec(), available=80 * 10**9, lengths=SEED, batch_size=64, device="cuda", precision="bfloat16"
    )
    assert (made.pass_tokens, made.recomputes) == (REPLAYED, False)


@pytest.mark.parametrize("gigabytes", [80, 40, 24, 16, 12, 10, 8, 7])
@pytest.mark.parametrize("batch_size", [1, 16, 64, 256])
def test_every_plan_fits_and_says_what_it_needs(gigabytes, batch_size):
    made = plan(gigabytes, batch_size=batch_size)
    assert made.fits
    assert made.needed <= made.available == gigabytes * 10**9
    assert sum(made.keep.values()) == 32
    assert made.memory == predict_pass(made, LLAMA_7B, make_spec(), "bfloat16", made.pass_tokens)
    assert made.reasons
    assert made.nearest is None


def test_less_memory_first_costs_what_is_cheap():
    assert plan(40).pass_tokens < plan(80).pass_tokens
    assert not plan(40).recomputes
    less = plan(24)
    assert less.recomputes
    assert not less.resident
    assert less.keep["input"] == 0
    assert plan(8).keep["input"] > 0
    assert any("compute everything again" in reason for reason in plan(8).reasons)


def test_what_was_asked_for_is_obeyed():
    always = make_spec(training=TrainingSpec(gradient_checkpointing=True))
    assert plan(80, always).keep == {"all": 0, "attention": 0, "input": 32}
    never = make_spec(training=TrainingSpec(gradient_checkpointing=False))
    assert plan(12, never).keep == {"all": 32, "attention": 0, "input": 0}
    few = make_spec(training=TrainingSpec(microbatch_size=3))
    assert (plan(80, few).microbatch_size, plan(80, few).pass_tokens) == (3, SEED.of_samples(3))
    assert plan(80, few, batch_size=2).microbatch_size == 2


def test_off_the_fast_path_a_model_recomputes_all_or_nothing():
    dropout = make_spec(lora=LoraSpec(dropout=0.1))
    assert not plan(80, dropout).fast_path
    for gigabytes in (80, 24, 12):
        made = plan(gigabytes, dropout)
        assert made.keep in ({"all": 32, "attention": 0, "input": 0}, {"all": 0, "attention": 0, "input": 32})
        assert not made.resident
    assert not plan(80, fast_path=False).fast_path
    assert not plan(80, precision="float32").fast_path
    assert plan(80, precision="float32", device="cpu").fast_path


def test_what_does_not_fit_is_said_with_the_nearest_that_would():
    made = plan(6.55)
    assert (made.fits, made.nearest) == (False, {"hone.data.max_seq_length": 256})
    assert "even one sample of 512 tokens at a time needs 6.6 GB" in made.reasons[0]
    whole = make_spec(quantization=QuantizationSpec(type="none"))
    assert plan(10, whole).nearest == {"hone.quantization.type": "nf4"}
    never = make_spec(training=TrainingSpec(gradient_checkpointing=False))
    assert plan(7, never).nearest == {"hone.training.gradient_checkpointing": "auto"}
    assert plan(3).nearest is None


@pytest.mark.parametrize("gigabytes", [6.5, 6.55])
def test_the_nearest_setting_does_fit(gigabytes):
    length = (plan(gigabytes).nearest or {}).get("hone.data.max_seq_length", 512)
    assert plan(gigabytes, lengths=SEED.cut(length)).fits


def test_stepping_down_always_needs_less_and_ends():
    spec, made, seen = make_spec(), plan(80), []
    largest = made.pass_tokens
    while made is not None:
        seen.append(made)
        made = step_down(made, LLAMA_7B, spec, "bfloat16", largest=largest, longest=512)
        largest = made.pass_tokens if made else 0
    for before, after in pairwise(seen):
        assert after.needed < before.needed
        assert len(after.reasons) == len(before.reasons) + 1
    assert [one.pass_tokens for one in seen[:3]] == [16_384, 8192, 4096]
    assert (seen[-1].pass_tokens, seen[-1].resident, seen[-1].keep["input"]) == (512, False, 32)


def test_stepping_down_starts_at_the_pass_that_did_not_fit():
    made = plan(80)
    smaller = step_down(made, LLAMA_7B, make_spec(), "bfloat16", largest=3000, longest=512)
    assert smaller is not None
    assert (smaller.pass_tokens, smaller.resident) == (1500, True)


def test_a_processors_plan_leaves_memory_to_others():
    made = plan_memory(
        SMOLLM2, make_spec(), available=10**9, lengths=SEED, batch_size=32, device="cpu", precision="float32"
    )
    assert made.available == 750_000_000
    assert not made.fits
    room = plan_memory(
        SMOLLM2, make_spec(), available=16 * 10**9, lengths=SEED, batch_size=32, device="cpu", precision="float32"
    )
    assert (room.pass_tokens, room.peak) == (512, room.memory.total)


def test_lengths_after_a_cut():
    lengths = Lengths.of([10, 20, 90], 30)
    assert (lengths.mean, lengths.longest) == (20, 30)
    assert lengths.of_samples(1) == 30
    assert lengths.deviation == pytest.approx(8.165, abs=1e-3)
    assert lengths.of_samples(100) == 2245  # 100 * 20 + 3 * 8.165 * 10, rounded up
    assert Lengths(5, 5).of_samples(3) == 15
