"""Each "auto" of a spec, replaced by a value and the reason for it.

Pure arithmetic on facts, so that the same rules serve the worker, an estimate and the tests.
"""

import math
from dataclasses import dataclass
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from core.memory import Device
from core.plan import Lengths, MemoryPlan, at_most, covers, plan_memory
from core.shape import ModelShape
from core.specs import FineTuneSpec, Optimizer, Precision, PromptTemplate

_T = TypeVar("_T")

#: Width from which the published fit for learning rates holds.
_FIT_FROM = 2000


@dataclass(frozen=True)
class Facts:
    """What the rules need to know about the data, the base model and the machine."""

    train_samples: int
    mean_tokens: float
    p90_tokens: int
    longest_tokens: int
    context_length: int
    shape: ModelShape
    #: Bytes that the job may take of the device's memory.
    available_memory: int
    device: Device
    fast_bfloat16: bool
    prompt_template: PromptTemplate
    #: Standard deviation of the samples' tokens.
    deviation_tokens: float = 0.0
    #: Whether the worker's own blocks cover the model.
    fast_path: bool = True
    #: Whether the device multiplies 8-bit floats with a scale a row.
    fast_fp8: bool = False


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
    #: Most samples, and most tokens, in one forward pass.
    microbatch_size: int
    pass_tokens: int
    optimizer: Optimizer
    precision: Precision
    gradient_checkpointing: bool
    prompt_template: PromptTemplate
    max_seq_length: int
    plan: MemoryPlan
    reasons: dict[str, str]
    #: DPO's, None for other methods.
    beta: float | None = None


def lora_learning_rate(hidden_size: int) -> float:
    """Learning rate for LoRA with Adam, by the model's width.

    From width 2,000 on, the fit for Llama models published with Thinking Machines' "LoRA Without Regret" (2025): 5e-5
    for full tuning at width 2,000, falling with the width's 0.781st power, times 10 for LoRA; 2.9e-4 at width 4,096.
    Below, steeper, so that it meets our sweep on SmolLM2-135M (width 576; 5,048 samples, one epoch, batch 32):
    validation loss 1.525 at 2e-4, 1.378 at 1.3e-3, 1.313 at 4e-3. Two digits are kept; 4e-3 is the most that was tried.
    """
    power = 0.781 if hidden_size >= _FIT_FROM else 1.67
    return float(f"{min(4e-3, 5e-4 * (_FIT_FROM / hidden_size) ** power):.1e}")


def resolve(spec: FineTuneSpec, facts: Facts, earlier: MemoryPlan | None = None) -> Resolved:
    """Replace every "auto" of ``spec``; a value that was given stands as it is.

    ``earlier`` is the memory plan of the job's last attempt. It is kept where it still fits: another one would add up
    the same loss in another order, and a plan that ran out of memory would be found by running out of it again.
    """
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
    max_seq_length = pick("data.max_seq_length", data.max_seq_length, *_length(facts))
    precision = pick("training.precision", training.precision, *_precision(facts))
    if precision == "fp8" and not (facts.fast_fp8 and facts.fast_path and covers(spec, precision, facts.device)):
        precision, reason = _precision(facts)
        reasons["training.precision"] = f"fp8 needs the fast path and a GPU of Hopper's generation or newer; {reason}"
    lengths = Lengths(facts.mean_tokens, facts.longest_tokens, facts.deviation_tokens).cut(max_seq_length)
    plan = plan_memory(
        spec=spec,
        shape=facts.shape,
        available=facts.available_memory,
        lengths=lengths if spec.dpo is None else lengths.in_pairs(),
        batch_size=math.ceil(batch_size / training.gpus),
        device=facts.device,
        precision=precision,
        fast_path=facts.fast_path,
    )
    if earlier is not None and _still_fits(earlier, plan):
        plan = earlier
    why = "; ".join(plan.reasons)
    microbatch = pick("training.microbatch_size", training.microbatch_size, plan.microbatch_size, why)
    if spec.dpo is not None:
        pair = 2 * lengths.longest
        microbatch = _pairs(min(microbatch, plan.microbatch_size), batch_size, plan.pass_tokens, pair)
        plan = at_most(plan, facts.shape, spec, precision, microbatch * pair)
    return Resolved(
        n_epochs=n_epochs,
        batch_size=batch_size,
        learning_rate_multiplier=multiplier,
        learning_rate=multiplier
        * pick(
            "training.learning_rate",
            training.learning_rate,
            *_learning_rate(spec, facts.shape.hidden_size),
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
        microbatch_size=microbatch,
        pass_tokens=plan.pass_tokens,
        optimizer=training.optimizer,
        precision=precision,
        gradient_checkpointing=pick(
            "training.gradient_checkpointing", training.gradient_checkpointing, plan.recomputes, why
        ),
        prompt_template=pick(
            "data.prompt_template", data.prompt_template, facts.prompt_template, "what the base model was taught"
        ),
        max_seq_length=max_seq_length,
        plan=plan,
        reasons=reasons,
        beta=None if spec.dpo is None else pick("dpo.beta", spec.dpo.beta, 0.1, "what the paper of DPO uses"),
    )


def _pairs(most: int, batch_size: int, pass_tokens: int, longest: int) -> int:
    """Pairs in one pass, which divide the batch: so many that a pass fits even when it holds the longest pair.

    Every sequence of a pass is padded to its longest, and no smaller plan is taken when the memory runs out.
    """
    most = max(1, min(most, pass_tokens // longest))
    return max(size for size in range(1, most + 1) if batch_size % size == 0)


def _learning_rate(spec: FineTuneSpec, width: int) -> tuple[float, str]:
    found = f"what LoRA takes at width {width}: the published fit for Llama, steeper below 2,000"
    if spec.dpo is None:
        return lora_learning_rate(width), found
    return float(f"{lora_learning_rate(width) / 10:.1e}"), f"a tenth of {found}; DPO starts from answers that it has"


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


def _still_fits(earlier: MemoryPlan, now: MemoryPlan) -> bool:
    """Whether the device is of the same kind and has the room that the earlier plan needs."""
    same = (earlier.device, earlier.fast_path) == (now.device, now.fast_path)
    return same and earlier.needed <= now.available


def _precision(facts: Facts) -> tuple[Precision, str]:
    if facts.fast_bfloat16:
        return "bfloat16", f"this {'GPU' if facts.device == 'cuda' else 'processor'} computes bfloat16 natively"
    return "float32", "bfloat16 would be emulated on this machine, tens of times slower"
