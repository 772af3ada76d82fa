"""Each "auto" and its reason."""

from dataclasses import replace

import pytest

from core.resolve import Facts, lora_learning_rate, resolve, tokens_that_fit
from core.specs import DataSpec, FineTuneSpec, HoneSpec, Hyperparameters, TrainingSpec

FACTS = Facts(
    train_samples=5000,
    mean_tokens=246,
    p90_tokens=500,
    longest_tokens=5714,
    context_length=4096,
    hidden_size=4096,
    intermediate_size=11_008,
    layers=32,
    weight_bytes=3_900_000_000,
    device_memory=85_000_000_000,
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


def test_the_microbatch_divides_the_batch_and_fits_the_device():
    for device, tokens in (("cuda", 8192), ("cpu", 512)):
        resolved = resolve(AUTO, replace(FACTS, device=device))
        assert resolved.batch_size % resolved.microbatch_size == 0
        assert resolved.microbatch_size * FACTS.mean_tokens <= tokens


def test_a_microbatch_that_does_not_divide_the_batch_is_made_to():
    spec = AUTO.model_copy(
        update={
            "hyperparameters": Hyperparameters(batch_size=8),
            "hone": HoneSpec(training=TrainingSpec(microbatch_size=5)),
        }
    )
    assert resolve(spec, FACTS).microbatch_size == 4


def test_bfloat16_is_chosen_only_where_it_is_native():
    assert resolve(AUTO, FACTS).precision == "bfloat16"
    assert resolve(AUTO, replace(FACTS, fast_bfloat16=False)).precision == "float32"


def test_activations_are_recomputed_only_where_they_do_not_fit():
    def on(gigabytes):
        resolved = resolve(AUTO, replace(FACTS, device_memory=gigabytes * 10**9))
        return resolved.microbatch_size, resolved.gradient_checkpointing

    assert on(80) == (16, False)
    assert on(40) == (8, False)
    assert on(24) == (8, True)
    assert on(8) == (8, True)


def test_the_memory_rule_stays_below_what_was_measured():
    """Llama-2-7B's shape at r=4: passes of 8 samples of some 200 tokens took 22.5 GB, of 16 samples 33.9 GB."""
    for peak, tokens in ((22.5e9, 8 * 200), (33.9e9, 16 * 200)):
        fits = tokens_that_fit(replace(FACTS, device_memory=int(peak / 0.85)))
        assert tokens <= fits <= 1.4 * tokens
