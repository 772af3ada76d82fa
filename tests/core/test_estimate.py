"""Estimates: arithmetic on what is known, and its limits told."""

from collections import Counter

import pytest

from core.base_card import BaseCard
from core.estimate import Data, Worker, estimate, from_characters, settle
from core.estimate_time import Measured
from core.preflight import Profile
from core.prompts import Encoded
from core.shape import read_shape
from core.specs import DpoSpec, FineTuneSpec, Hyperparameters

#: Llama-2-7B's config.json, as far as it is looked at.
LLAMA = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32_000, "max_position_embeddings": 4096,
}  # fmt: skip
H100 = Worker("NVIDIA H100 80GB HBM3", "cuda", 80 * 10**9, True)
L4 = Worker("NVIDIA L4", "cuda", 24 * 10**9, True)
SMALL = Worker("NVIDIA T1000", "cuda", 4 * 10**9, False)


def card(**config) -> BaseCard:
    return BaseCard(
        config=LLAMA | config, tokenizer="", eos_token="</s>", eos_token_id=2, bos_token="<s>", begin_id=1,
        special_tokens={}, chat_template=None, tools_are_none=True, default_template="llama2", fast_path=True,
    )  # fmt: skip


def data(samples: int = 10_000, length: int = 246, longest: int = 500, **fields) -> Data:
    profile = Profile()
    for size, count in ((length, samples - 1), (longest, 1)):
        for _ in range(count):
            profile.add(Encoded([0] * size, [False] * (size // 3) + [True] * (size - size // 3)))
    return Data(samples, profile, "preflight", **fields)


def spec(**hone) -> FineTuneSpec:
    return FineTuneSpec(model="llama", training_file="file-1", hone=hone)


SEED = spec(lora={"r": 4, "alpha": 16}, training={"max_steps": None})


def test_the_seed_runs_arithmetic_is_shown():
    found = estimate(SEED, data(), card(), [L4], {})
    assert found["parameters"] == {"total": 6_748_409_856, "trainable": 9_994_240, "share": 0.001481}
    memory = found["memory"]
    assert memory["weights_32_bit"] == 4 * 6_738_415_616
    assert memory["weights_16_bit"] == 2 * 6_738_415_616
    assert 3.8e9 < memory["weights_4_bit"] < 4.1e9
    assert memory["peak"] == sum(part["bytes"] for part in memory["parts"])
    assert found["fits"] is True
    assert found["devices"][0]["peak"] == memory["peak"]


def test_steps_and_tokens_follow_from_samples_epochs_and_the_cut():
    found = estimate(spec(data={"max_seq_length": 200}), data(), card(), [H100], {})
    assert found["data"]["validation_samples"] == 100
    assert found["data"]["tokens_per_epoch"] == 9900 * 200
    assert found["data"]["trained_tokens_per_epoch"] == pytest.approx(9900 * (200 - 246 // 3), rel=0.01)
    assert found["steps"] == -(-9900 // 32)
    assert found["trained_tokens"] == 9900 * 200
    limited = estimate(spec(data={"max_seq_length": 200}, training={"max_steps": 31}), data(), card(), [H100], {})
    assert limited["trained_tokens"] == pytest.approx(9900 * 200 / 10)
    own = estimate(spec(), data(validation_samples=7), card(), [H100], {})
    assert own["data"]["validation_samples"] == 7
    assert own["steps"] == -(-10_000 // 32)


def test_what_does_not_fit_is_told_with_what_would():
    found = estimate(spec(quantization={"type": "none"}), data(), card(), [SMALL, L4], {})
    assert found["fits"] is True
    found = estimate(spec(quantization={"type": "none"}), data(), card(), [SMALL], {})
    assert found["fits"] is False
    assert found["nearest"]["changes"] == {} or "hone.quantization.type" in found["nearest"]["changes"]
    assert "NVIDIA T1000" in found["nearest"]["message"]
    found = estimate(
        spec(quantization={"type": "none"}), data(), card(), [Worker("A card", "cuda", 12 * 10**9, True)], {}
    )
    assert found["nearest"]["changes"] == {"hone.quantization.type": "nf4"}
    assert "set hone.quantization.type to nf4" in found["nearest"]["message"]
    again = estimate(spec(), data(), card(), [Worker("A card", "cuda", 12 * 10**9, True)], {})
    assert again["fits"] is True, "the setting that is named makes it fit"


def test_time_is_a_guess_until_a_job_has_ended_and_then_a_measurement():
    guess = estimate(spec(), data(), card(), [H100], {})["time"]
    assert guess["basis"] == "prior"
    assert guess["low_seconds"] < 9900 * 246 / 18_900 < guess["high_seconds"]
    measured = {"NVIDIA H100 80GB HBM3": [Measured(10_000, 60, 1), Measured(12_000, 40, 1)]}
    found = estimate(spec(), data(), card(), [H100], measured, base_loaded=True)["time"]
    assert (found["basis"], found["jobs"]) == ("measured", 2)
    assert found["low_seconds"] < 9900 * 246 / 11_000 + 50 < found["high_seconds"]
    assert found["high_seconds"] / found["low_seconds"] < 1.7
    assert estimate(spec(), data(), card(), [L4], measured)["time"]["basis"] == "prior", "another device's do not count"


def test_loading_counts_for_a_worker_that_has_the_base_not_in_memory():
    measured = {H100.name: [Measured(10_000, 5, 1, load_seconds=30), Measured(10_000, 5, 1)]}

    def seconds(loaded: bool | None) -> tuple[int, int]:
        found = estimate(spec(), data(), card(), [H100], measured, base_loaded=loaded)["time"]
        assert (found["base_loaded"], found["load_seconds"]) == (loaded, 30)
        return found["low_seconds"], found["high_seconds"]

    warm, cold = seconds(loaded=True), seconds(loaded=False)
    assert cold == (warm[0] + 30, warm[1] + 30)
    assert seconds(loaded=None) == (warm[0], cold[1])


def test_only_jobs_that_were_trained_alike_count():
    others = {"precision": "float32"}, {"fast_path": False}, {"method": "dpo"}
    measured = {H100.name: [Measured(10_000, 5, 1, **other) for other in others]}
    assert estimate(spec(), data(), card(), [H100], measured)["time"]["basis"] == "prior"
    tuned = FineTuneSpec(model="llama", training_file="file-1", dpo=DpoSpec())
    assert estimate(tuned, data(), card(), [H100], measured)["time"]["basis"] == "prior", "DPO has no fast path"
    measured[H100.name].append(Measured(10_000, 5, 1, method="dpo", fast_path=False))
    assert estimate(tuned, data(), card(), [H100], measured)["time"]["jobs"] == 1


def test_preferences_count_both_answers_and_their_padding():
    profile = Profile()
    for chosen, rejected in ((100, 40), (60, 50)):
        profile.add(*(Encoded([0] * size, [False] * 30 + [True] * (size - 30)) for size in (chosen, rejected)))
    tuned = spec(data={"max_seq_length": 128}).model_copy(
        update={"dpo": DpoSpec(), "hyperparameters": Hyperparameters(batch_size=2, n_epochs=1)}
    )
    found = estimate(tuned, Data(2000, profile, "preflight", validation_samples=0), card(), [H100], {})
    assert found["data"]["tokens_per_epoch"] == 1000 * (100 + 40 + 60 + 50)
    assert found["data"]["trained_tokens_per_epoch"] == 1000 * (70 + 10 + 30 + 20)
    # Of two pairs drawn together, the longer has 100 tokens in three cases of four; each is padded to it, twice.
    assert found["trained_tokens"] == 2000 * 2 * (0.75 * 100 + 0.25 * 60)
    assert not any("one answer" in warning for warning in found["warnings"])


def test_preferences_are_planned_as_two_padded_rows_a_sample():
    tuned = FineTuneSpec(model="llama", training_file="file-1", dpo=DpoSpec())
    for memory in (12 * 10**9, 80 * 10**9):
        machine = Worker("A card", "cuda", memory, True)
        found = settle(tuned, data(), card(), read_shape(LLAMA), machine)
        longest = min(500, found.max_seq_length)
        assert found.plan.pass_tokens == found.microbatch_size * 2 * longest, "even the longest pairs fit together"
        assert found.batch_size % found.microbatch_size == 0
        assert found.plan.fits
        assert not found.plan.fast_path
        told = estimate(tuned, data(), card(), [machine], {})["memory"]
        assert told["peak"] == found.plan.needed
    few, many = (estimate(tuned, data(longest=size), card(), [H100], {})["memory"]["peak"] for size in (250, 500))
    assert few < many


def test_nothing_is_claimed_of_what_is_not_known():
    found = estimate(spec(), data(), None, [H100], {})
    assert (found["memory"], found["parameters"], found["fits"], found["devices"]) == (None, None, None, [])
    assert found["steps"] > 0
    found = estimate(spec(), data(), card(num_experts=8), [H100], {})
    assert found["memory"] is None
    assert "mixture of experts" in found["warnings"][0]
    found = estimate(spec(), data(), card(), [], {})
    assert found["fits"] is None
    assert found["memory"]["peak"] > 0
    assert "No worker" in found["warnings"][0]
    guessed = Data(3, from_characters(Counter({320: 3})), "characters")
    found = estimate(spec(), guessed, None, [], {})
    assert found["data"]["mean_tokens"] == 100
    assert any("3.2 characters" in warning for warning in found["warnings"])


def test_the_device_that_fits_is_the_one_that_is_planned_for():
    found = estimate(spec(), data(), card(), [SMALL, L4, Worker("processor", "cpu", 400 * 10**9, False)], {})
    assert [device["fits"] for device in found["devices"]] == [False, True, True]
    assert found["memory"]["peak"] == found["devices"][1]["peak"]


def test_a_machine_with_too_few_gpus_does_not_fit():
    asked = spec(training={"gpus": 2})
    pair = Worker("NVIDIA L4", "cuda", 24 * 10**9, True, gpus=2)
    found = estimate(asked, data(), card(), [L4, pair], {})
    assert [device["fits"] for device in found["devices"]] == [False, True]
    assert "1 GPUs of the 2" in found["devices"][0]["reason"]
    found = estimate(asked, data(), card(), [L4], {})
    assert (found["fits"], found["nearest"]["changes"]) == (False, {"hone.training.gpus": 1})
