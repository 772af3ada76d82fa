"""Each "auto" and its reason."""

from dataclasses import replace

import pytest

from core.resolve import Facts, lora_learning_rate, resolve
from core.specs import DataSpec, FineTuneSpec, HoneSpec, Hyperparameters, TrainingSpec
from tests.core.shapes import LLAMA_7B

FACTS = Facts(
    train_samples=5000,
    mean_tokens=246,
    p90_tokens=500,
    longest_tokens=5714,
    context_length=4096,
    shape=LLAMA_7B,
    available_memory=85_000_000_000,
    device="cuda",
    fast_bfloat16=True,
    prompt_template="llama2",
)
AUTO = FineTuneSpec(model="m", training_file="f")


def test_every_auto_is_replaced_and_has_its_reason():
    resolved = resolve(AUTO, FACTS)
    assert "auto" not in resolved.model_dump().values()
    asked = {
        f"{group}.{name}"
        for group, spec in (
            ("hyperparameters", AUTO.hyperparameters),
            ("training", AUTO.hone.training),
            ("data", AUTO.hone.data),
        )
        for name, value in spec.model_dump().items()
        if value == "auto"
    }
    assert set(resolved.reasons) == asked
    assert all(resolved.reasons.values())


def test_the_length_is_the_90th_percentile_rounded_up_to_64_within_the_context():
    assert resolve(AUTO, FACTS).max_seq_length == 512
    assert resolve(AUTO, replace(FACTS, p90_tokens=513)).max_seq_length == 576
    assert resolve(AUTO, replace(FACTS, p90_tokens=5)).max_seq_length == 64
    assert resolve(AUTO, replace(FACTS, p90_tokens=9000)).max_seq_length == 4096


def test_the_learning_rate_falls_with_the_models_width():
    assert lora_learning_rate(64) == lora_learning_rate(576) == 4e-3
    assert lora_learning_rate(1999) == lora_learning_rate(2000) == 5e-4
    assert lora_learning_rate(4096) == 2.9e-4
    spec = AUTO.model_copy(update={"hyperparameters": Hyperparameters(learning_rate_multiplier=2)})
    assert resolve(spec, FACTS).learning_rate == pytest.approx(5.8e-4)


def test_what_was_asked_for_stands_and_needs_no_reason():
    spec = FineTuneSpec(
        model="m",
        training_file="f",
        hyperparameters=Hyperparameters(batch_size=7, n_epochs=2, learning_rate_multiplier=0.5),
        hone=HoneSpec(
            training=TrainingSpec(learning_rate=1e-3, warmup_steps=0, precision="float32", microbatch_size=7),
            data=DataSpec(max_seq_length=100, prompt_template="none"),
        ),
    )
    resolved = resolve(spec, FACTS)
    assert (resolved.batch_size, resolved.n_epochs, resolved.max_seq_length) == (7, 2, 100)
    assert resolved.learning_rate == pytest.approx(5e-4)
    assert set(resolved.reasons) == {"training.gradient_checkpointing", "training.eval_steps", "training.save_steps"}


def test_steps_count_partial_batches_and_stop_at_max_steps():
    spec = AUTO.model_copy(update={"hyperparameters": Hyperparameters(batch_size=32, n_epochs=3)})
    assert resolve(spec, replace(FACTS, train_samples=65)).total_steps == 9
    limited = spec.model_copy(update={"hone": HoneSpec(training=TrainingSpec(max_steps=4))})
    assert resolve(limited, replace(FACTS, train_samples=65)).total_steps == 4


@pytest.mark.parametrize(("samples", "batch"), [(10, 4), (400, 8), (1000, 16), (5000, 32), (10**6, 32)])
def test_the_batch_leaves_some_fifty_steps(samples, batch):
    assert resolve(AUTO, replace(FACTS, train_samples=samples)).batch_size == batch


def test_an_earlier_plan_is_kept_where_it_still_fits():
    small = resolve(AUTO, replace(FACTS, available_memory=24 * 10**9)).plan
    assert resolve(AUTO, FACTS, small).plan == small
    assert resolve(AUTO, FACTS, small).pass_tokens == small.pass_tokens
    assert resolve(AUTO, replace(FACTS, available_memory=16 * 10**9), small).plan.needed <= 16 * 10**9
    assert resolve(AUTO, replace(FACTS, device="cpu"), small).plan.device == "cpu"


def test_bfloat16_is_chosen_only_where_it_is_native():
    assert resolve(AUTO, FACTS).precision == "bfloat16"
    assert resolve(AUTO, replace(FACTS, fast_bfloat16=False)).precision == "float32"
