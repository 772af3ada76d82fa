"""Each "auto" of a spec, replaced by a value and the reason for it.

Pure arithmetic on facts, so that the same rules serve the worker, an estimate and the tests.
"""

import math
from dataclasses import dataclass
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from core.specs import FineTuneSpec, Optimizer, Precision, PromptTemplate

_T = TypeVar("_T")

#: Tokens in one forward pass that keep the device busy without filling it: a GPU's launches cost more than its
#: arithmetic below some 4k tokens; two CPU cores are busy with 512.
_MICROBATCH_TOKENS = {"cuda": 8192, "cpu": 512}


@dataclass(frozen=True)
class Facts:
    """What the rules need to know about the data, the base model and the machine."""

    train_samples: int
    mean_tokens: float
    p90_tokens: int
    longest_tokens: int
    context_length: int
    hidden_size: int
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

    5e-5 for full tuning at width 2,000, falling with the width's 0.781st power, times 10 for LoRA: the fit for Llama
    models published with Thinking Machines' "LoRA Without Regret" (2025). It gives 1.3e-3 at width 576 (SmolLM2-135M)
    and 2.9e-4 at width 4,096 (Llama-2-7B). Two digits are kept: the optimum is flat. Below width 340 the fit would
    pass 2e-3, where it has not been seen to hold.
    """
    rate = min(2e-3, 5e-5 * 10 * (2000 / hidden_size) ** 0.781)
    return float(f"{rate:.1e}")


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
            f"5e-4 x (2000 / width {facts.hidden_size})^0.781, published for LoRA on Llama; at most 2e-3",
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
            "training.gradient_checkpointing",
            training.gradient_checkpointing,
            False,
            "not needed at this microbatch; recomputing would cost about a third more time",
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
    rounded = max(64, math.ceil(facts.p90_tokens / 64) * 64)
    if rounded > facts.context_length:
        return facts.context_length, "the base model's context, which is shorter than the 90th percentile"
    return (
        rounded,
        f"90th percentile of {facts.p90_tokens} tokens, rounded up to 64; the longest has {facts.longest_tokens:,}",
    )


def _microbatch(batch_size: int, facts: Facts) -> tuple[int, str]:
    """The largest divisor of the batch whose mean tokens stay under the device's mark."""
    tokens = _MICROBATCH_TOKENS[facts.device]
    size = _divisor(batch_size, int(tokens // max(1.0, facts.mean_tokens)))
    return size, f"about {tokens:,} tokens a forward pass on {facts.device}, at {facts.mean_tokens:.0f} tokens a sample"


def _divisor(batch_size: int, at_most: int) -> int:
    """The largest divisor of the batch that is not above ``at_most``; at least 1."""
    return max((size for size in range(1, at_most + 1) if batch_size % size == 0), default=1)


def _precision(facts: Facts) -> tuple[Precision, str]:
    if facts.fast_bfloat16:
        return "bfloat16", f"this {'GPU' if facts.device == 'cuda' else 'processor'} computes bfloat16 natively"
    return "float32", "bfloat16 would be emulated on this machine, tens of times slower"
