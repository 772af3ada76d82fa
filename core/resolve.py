"""Each "auto" of a spec, replaced by a value and the reason for it.

Pure arithmetic on facts, so that the same rules serve the worker, an estimate and the tests.
"""

import math
from dataclasses import dataclass
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from core.specs import Auto, FineTuneSpec, Optimizer, Precision, PromptTemplate, TrainingSpec

_T = TypeVar("_T")

#: Width from which the published fit for learning rates holds.
_FIT_FROM = 2000
#: Tokens in one forward pass that keep the device busy: a GPU's launches cost more than its arithmetic below some 4k
#: tokens; two CPU cores are busy with 512.
_MICROBATCH_TOKENS = {"cuda": 8192, "cpu": 512}
#: Below this many tokens a pass, recomputing activations is cheaper than smaller passes.
_SMALL_PASS = {"cuda": 2048, "cpu": 256}
#: Share of the device's memory that weights and activations may take; the rest is the allocator's and the optimizer's.
_MEMORY_SHARE = 0.85


@dataclass(frozen=True)
class Facts:
    """What the rules need to know about the data, the base model and the machine."""

    train_samples: int
    mean_tokens: float
    p90_tokens: int
    longest_tokens: int
    context_length: int
    hidden_size: int
    intermediate_size: int
    layers: int
    #: Bytes of the base model as loaded, and of the device's memory.
    weight_bytes: int
    device_memory: int
    device: Literal["cuda", "cpu"]
    fast_bfloat16: bool
    prompt_template: PromptTemplate


class Resolved(BaseModel):
    """A fine-tune's settings as they run. ``reasons`` says, by dotted name, where each "auto" came from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_epochs: int
    batch_size: int
    learning_rate_multiplier: float
    learning_rate: float
    warmup_steps: int
    total_steps: int
    eval_steps: int
    save_steps: int
    microbatch_size: int
    optimizer: Optimizer
    precision: Precision
    gradient_checkpointing: bool
    prompt_template: PromptTemplate
    max_seq_length: int
    reasons: dict[str, str]


def lora_learning_rate(hidden_size: int) -> float:
    """Learning rate for LoRA with Adam, by the model's width.

    From width 2,000 on, the fit for Llama models published with Thinking Machines' "LoRA Without Regret" (2025): 5e-5
    for full tuning at width 2,000, falling with the width's 0.781st power, times 10 for LoRA; 2.9e-4 at width 4,096.
    Below, steeper, so that it meets our sweep on SmolLM2-135M (width 576; 5,048 samples, one epoch, batch 32):
    validation loss 1.525 at 2e-4, 1.378 at 1.3e-3, 1.313 at 4e-3. Two digits are kept; 4e-3 is the most that was tried.
    """
    power = 0.781 if hidden_size >= _FIT_FROM else 1.67
    return float(f"{min(4e-3, 5e-4 * (_FIT_FROM / hidden_size) ** power):.1e}")


def resolve(spec: FineTuneSpec, facts: Facts) -> Resolved:
    """Replace every "auto" of ``spec``; a value that was given stands as it is."""
    reasons: dict[str, str] = {}

    def pick(name: str, asked: _T | Literal["auto"], chosen: _T, reason: str) -> _T:
        if asked != "auto":
            return asked
        reasons[name] = reason
        return chosen

    asked, training, data = spec.hyperparameters, spec.hone.training, spec.hone.data
    n_epochs = pick("hyperparameters.n_epochs", asked.n_epochs, *_epochs(facts.train_samples))
    batch_size = pick("hyperparameters.batch_size", asked.batch_size, *_batch_size(facts.train_samples))
    multiplier = pick(
        "hyperparameters.learning_rate_multiplier", asked.learning_rate_multiplier, 1.0, "the rate as it is"
    )
    total_steps = math.ceil(facts.train_samples / batch_size) * n_epochs
    total_steps = min(total_steps, training.max_steps or total_steps)
    every = max(1, total_steps // 10)
    microbatch_size = pick("training.microbatch_size", training.microbatch_size, *_microbatch(batch_size, facts))
    if batch_size % microbatch_size:
        asked_for, microbatch_size = microbatch_size, _divisor(batch_size, microbatch_size)
        reasons["training.microbatch_size"] = f"{asked_for} does not divide the batch of {batch_size}"
    max_seq_length = pick("data.max_seq_length", data.max_seq_length, *_length(facts))
    return Resolved(
        n_epochs=n_epochs,
        batch_size=batch_size,
        learning_rate_multiplier=multiplier,
        learning_rate=multiplier
        * pick(
            "training.learning_rate",
            training.learning_rate,
            lora_learning_rate(facts.hidden_size),
            f"what LoRA takes at width {facts.hidden_size}: the published fit for Llama, steeper below width 2,000",
        ),
        warmup_steps=pick(
            "training.warmup_steps",
            training.warmup_steps,
            min(10, int(0.03 * total_steps)),
            f"3 % of {total_steps} steps, at most 10; a warm-up wastes its first step, so short runs do without",
        ),
        total_steps=total_steps,
        eval_steps=pick("training.eval_steps", training.eval_steps, every, "ten times in the job"),
        save_steps=pick("training.save_steps", training.save_steps, every, "ten times in the job"),
        microbatch_size=microbatch_size,
        optimizer=training.optimizer,
        precision=pick("training.precision", training.precision, *_precision(facts)),
        gradient_checkpointing=pick(
            "training.gradient_checkpointing", *_checkpointing(training, microbatch_size, facts)
        ),
        prompt_template=pick(
            "data.prompt_template", data.prompt_template, facts.prompt_template, "what the base model was taught"
        ),
        max_seq_length=max_seq_length,
        reasons=reasons,
    )


def _epochs(samples: int) -> tuple[int, str]:
    if samples >= 1000:
        return 1, f"{samples:,} samples are enough for one pass"
    return 3, f"{samples:,} samples are few, so each is seen three times"


def _batch_size(samples: int) -> tuple[int, str]:
    """A power of two from 4 to 32 that leaves some 50 steps an epoch."""
    wanted = max(4, min(32, samples // 50))
    size = min(1 << (wanted.bit_length() - 1), 256)
    return size, f"some 50 steps an epoch from {samples:,} samples, between 4 and 32"


def _length(facts: Facts) -> tuple[int, str]:
    return sequence_length(facts.p90_tokens, facts.longest_tokens, facts.context_length)


def sequence_length(p90_tokens: int, longest_tokens: int, context_length: int) -> tuple[int, str]:
    """Where samples are cut when nobody says: the 90th percentile, rounded up to 64, within the context."""
    rounded = max(64, math.ceil(p90_tokens / 64) * 64)
    if rounded > context_length:
        return context_length, "the base model's context, which is shorter than the 90th percentile"
    return rounded, f"90th percentile of {p90_tokens} tokens, rounded up to 64; the longest has {longest_tokens:,}"


def _microbatch(batch_size: int, facts: Facts) -> tuple[int, str]:
    """The largest divisor of the batch whose tokens keep the device busy and whose activations fit."""
    busy, room = _MICROBATCH_TOKENS[facts.device], tokens_that_fit(facts)
    limit = max(_SMALL_PASS[facts.device], min(busy, room))
    size = _divisor(batch_size, int(limit // max(1.0, facts.mean_tokens)))
    why = f"keep the {facts.device} busy" if room >= busy else "are what the memory takes"
    return size, f"about {limit:,} tokens a pass {why}, at {facts.mean_tokens:.0f} tokens a sample"


def _checkpointing(training: TrainingSpec, microbatch_size: int, facts: Facts) -> tuple[Auto | bool, bool, str]:
    tokens, room = round(microbatch_size * facts.mean_tokens), tokens_that_fit(facts)
    needed = tokens > room
    reason = f"{tokens:,} tokens a pass; the device's memory takes about {room:,} without recomputing"
    return training.gradient_checkpointing, needed, reason


def tokens_that_fit(facts: Facts) -> int:
    """Tokens whose activations fit beside the weights without recomputing, with a quarter kept for longer batches.

    A layer keeps about 12 values of the model's width and 5 of the MLP's for each token. Measured for Llama-2-7B's
    shape on an H100 (r=4 with dropout, bfloat16): 22.5 GB at passes of 8 samples, 33.9 GB at 16, of some 200 tokens
    each.
    """
    size = 2 if facts.fast_bfloat16 else 4
    each = size * facts.layers * (12 * facts.hidden_size + 5 * facts.intermediate_size)
    return int(0.75 * max(0.0, _MEMORY_SHARE * facts.device_memory - facts.weight_bytes) / each)


def _divisor(batch_size: int, at_most: int) -> int:
    """The largest divisor of the batch that is not above ``at_most``; at least 1."""
    return max((size for size in range(1, at_most + 1) if batch_size % size == 0), default=1)


def _precision(facts: Facts) -> tuple[Precision, str]:
    if facts.fast_bfloat16:
        return "bfloat16", f"this {'GPU' if facts.device == 'cuda' else 'processor'} computes bfloat16 natively"
    return "float32", "bfloat16 would be emulated on this machine, tens of times slower"
