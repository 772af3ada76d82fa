"""The memory plan: the fastest way to train a job that fits into the device's memory.

Three things can be chosen without changing a result: how many tokens go through the model at once, what each block
keeps for its backward pass, and whether the base's weights stay dequantized.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from core.memory import Device, KeepCounts, Memory, Setup, predict
from core.shape import ModelShape
from core.specs import Auto, FineTuneSpec, Precision, QuantizationSpec

#: Tokens a pass that are tried, the largest first. On an H100 with Llama-2-7B's shape, 3,328 tokens a pass train 17
#: thousand tokens a second, 8,192 19.2, 16,384 20.4; a processor's caches want fewer.
_PASSES: dict[Device, tuple[int, ...]] = {
    "cuda": (16_384, 12_288, 8192, 6144, 4096, 3072, 2048, 1536, 1024, 512, 256, 128, 64),
    "cpu": (512, 256, 128, 64),
}
#: What a pass costs beside its tokens, in tokens: launches, and dequantizing every weight twice. From the
#: figures above: 41 ms at 21.5 tokens a ms; the base resident saves some 9 ms.
_PASS_COST: dict[Device, tuple[int, int]] = {"cuda": (880, 690), "cpu": (40, 5)}
#: Passes of at most so many tokens are replayed on a GPU's fast path (decision 0035).
REPLAYED = 8192
#: Seconds that the host takes to launch a larger one, a block, and operations that an H100 does in a second meanwhile.
_LAUNCHES, _OPERATIONS = 2e-3, 6e14
#: A processor's memory is other programs' as well: the plan takes this share of it. A GPU's is the worker's alone.
_SHARE: dict[Device, float] = {"cuda": 1.0, "cpu": 0.75}
#: Backward and forward of a frozen linear layer cost the same, so computing it once more adds half.
_AGAIN = 0.5
_VALUE_BYTES: dict[Precision, int] = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8": 2}
#: Shortest cut that is proposed, in tokens.
_SHORTEST_CUT = 64


@dataclass(frozen=True)
class Lengths:
    """A dataset's samples in tokens, after the cut."""

    mean: float
    longest: int
    deviation: float = 0.0
    #: Rows of a sample: 2 where it is a pair of sequences, each padded to the longest of its pass; then the other
    #: figures are those of both. None where samples lie end to end.
    rows: int | None = None

    @classmethod
    def of(cls, lengths: Sequence[int], cut: int) -> "Lengths":
        """Of samples of ``lengths`` tokens, at least one, cut at ``cut``."""
        kept = [min(length, cut) for length in lengths]
        mean = sum(kept) / len(kept)
        return cls(mean, max(kept), math.sqrt(sum((length - mean) ** 2 for length in kept) / len(kept)))

    def of_samples(self, count: int) -> int:
        """The most tokens that ``count`` samples have, but for one draw in a thousand."""
        if self.rows is not None:
            return count * self.longest
        likely = count * self.mean + 3 * self.deviation * math.sqrt(count)
        return max(self.longest, min(count * self.longest, math.ceil(likely)))

    def cut(self, length: int) -> "Lengths":
        """As it would be if samples were cut at ``length``; the mean is that of the samples as they were, at most."""
        length *= self.rows or 1
        return replace(
            self,
            mean=min(self.mean, length),
            longest=min(self.longest, length),
            deviation=min(self.deviation, length / 2),
        )

    def in_pairs(self) -> "Lengths":
        """As preferences are trained, given those of the longer of a pair's two sequences."""
        return Lengths(2 * self.mean, 2 * self.longest, 2 * self.deviation, rows=2)


class MemoryPlan(BaseModel):
    """How a job runs in the memory that there is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: Device
    fast_path: bool
    #: Most tokens in one forward pass, and most samples. A longer sample goes alone.
    pass_tokens: int
    microbatch_size: int
    #: Number of blocks that keep "all", "attention" or their "input"; the last come first in the network.
    keep: dict[Literal["all", "attention", "input"], int]
    #: Whether the base's weights stay in memory as they are computed with.
    resident: bool
    memory: Memory
    #: Predicted: torch's largest allocation on a GPU, resident memory on a processor. Bytes.
    peak: int
    #: All that the job needs of the device, and what it has. Bytes.
    needed: int
    available: int
    fits: bool
    #: Each choice in a sentence.
    reasons: tuple[str, ...]
    #: Tokens of a row where samples are padded rows: preferences. None where they lie end to end.
    row_tokens: int | None = None
    #: When nothing fits: settings, by dotted name, that would; None when none would.
    nearest: dict[str, Any] | None = None

    @property
    def keep_counts(self) -> KeepCounts:
        """``keep`` as ``core.memory`` takes it."""
        return KeepCounts(**self.keep)

    @property
    def recomputes(self) -> bool:
        """Whether a block computes anything again in its backward pass."""
        return bool(self.keep["attention"] or self.keep["input"])


@dataclass(frozen=True)
class _Candidate:
    tokens: int
    keep: KeepCounts
    resident: bool
    memory: Memory
    cost: float


def plan_memory(
    shape: ModelShape,
    spec: FineTuneSpec,
    *,
    available: int,
    lengths: Lengths,
    batch_size: int,
    device: Device,
    precision: Precision,
    fast_path: bool = True,
) -> MemoryPlan:
    """The fastest way to run ``spec`` within ``available`` bytes, or, when none fits, the smallest and what would.

    ``fast_path`` is whether the worker's own blocks cover the model; the spec may still turn them off.
    """
    room = int(available * _SHARE[device])
    setup = Setup(
        lora=spec.hone.lora,
        quantization=spec.hone.quantization,
        optimizer=spec.hone.training.optimizer,
        value_bytes=_VALUE_BYTES[precision],
        device=device,
        fast_path=fast_path and covers(spec, precision, device),
        fp8=precision == "fp8",
        row_tokens=None if lengths.rows is None else lengths.longest // lengths.rows,
    )
    asked = spec.hone.training.microbatch_size
    samples = batch_size if asked == "auto" else min(asked, batch_size)
    found = _best(shape, setup, spec.hone.training.gradient_checkpointing, lengths, batch_size, samples, room)
    chosen = found or _smallest(shape, setup, spec.hone.training.gradient_checkpointing, lengths)
    fits = chosen.memory.total <= room
    return MemoryPlan(
        device=device,
        fast_path=setup.fast_path,
        pass_tokens=chosen.tokens,
        microbatch_size=samples if fits else 1,
        keep={"all": chosen.keep.all, "attention": chosen.keep.attention, "input": chosen.keep.input},
        resident=chosen.resident,
        memory=chosen.memory,
        peak=_peak(chosen.memory, device),
        needed=chosen.memory.total,
        available=room,
        fits=fits,
        reasons=tuple(_reasons(chosen, lengths, batch_size, room, device, fits=fits)),
        row_tokens=setup.row_tokens,
        nearest=None if fits else _nearest(shape, setup, spec, lengths, room),
    )


def covers(spec: FineTuneSpec, precision: Precision, device: Device) -> bool:
    """Whether the fast path covers what was asked for (decision 0008); the model is another matter."""
    trained = precision == "bfloat16" or (precision, device) in {("float32", "cpu"), ("fp8", "cuda")}
    return spec.hone.training.fast_path and not spec.hone.lora.dropout and trained


def predict_pass(plan: MemoryPlan, shape: ModelShape, spec: FineTuneSpec, precision: Precision, tokens: int) -> Memory:
    """The memory under ``plan`` when the largest pass has ``tokens`` tokens."""
    return predict(shape, _setup(plan, spec, precision), tokens, plan.keep_counts, resident=plan.resident)


def step_down(
    plan: MemoryPlan, shape: ModelShape, spec: FineTuneSpec, precision: Precision, *, largest: int, longest: int
) -> MemoryPlan | None:
    """The next smaller plan after a pass of ``largest`` tokens did not fit; None when there is none.

    First passes of half the tokens. Where a pass is one sample of ``longest`` tokens already: no resident weights, then
    less is kept: no block's MLP values, then inputs alone. A user's ``gradient_checkpointing: false`` gives way last.
    """
    layers, keep = shape.layers, plan.keep_counts
    if largest > longest:
        tokens = max(longest, largest // 2)
        how = f"passes now have at most {tokens:,} tokens"
        changed: dict[str, Any] = {"pass_tokens": tokens}
    elif plan.resident and precision != "fp8":
        how, changed = "the base's weights are no longer kept dequantized", {"resident": False}
    elif keep.all and plan.fast_path:
        how = "no block keeps its MLP's inner values any more"
        changed = {"keep": {"all": 0, "attention": layers - keep.input, "input": keep.input}}
    elif keep.input < layers:
        how, changed = "blocks keep their input alone", {"keep": {"all": 0, "attention": 0, "input": layers}}
    else:
        return None
    changed["reasons"] = (*plan.reasons, f"the memory ran out in a pass of {largest:,} tokens, so {how}")
    return _told_anew(plan.model_copy(update=changed), shape, spec, precision)


def at_most(plan: MemoryPlan, shape: ModelShape, spec: FineTuneSpec, precision: Precision, tokens: int) -> MemoryPlan:
    """The plan for passes that turn out to have ``tokens`` tokens at most, fewer than there is room for."""
    return _told_anew(plan.model_copy(update={"pass_tokens": tokens}), shape, spec, precision)


def _told_anew(plan: MemoryPlan, shape: ModelShape, spec: FineTuneSpec, precision: Precision) -> MemoryPlan:
    memory = predict_pass(plan, shape, spec, precision, plan.pass_tokens)
    return plan.model_copy(update={"memory": memory, "peak": _peak(memory, plan.device), "needed": memory.total})


def _setup(plan: MemoryPlan, spec: FineTuneSpec, precision: Precision) -> Setup:
    return Setup(
        lora=spec.hone.lora,
        quantization=spec.hone.quantization,
        optimizer=spec.hone.training.optimizer,
        value_bytes=_VALUE_BYTES[precision],
        device=plan.device,
        fast_path=plan.fast_path,
        fp8=precision == "fp8",
        row_tokens=plan.row_tokens,
    )


def _peak(memory: Memory, device: Device) -> int:
    return memory.allocated if device == "cuda" else memory.total


# --- Choosing --------------------------------------------------------------------------------------------------------


def _best(
    shape: ModelShape,
    setup: Setup,
    checkpointing: Auto | bool,
    lengths: Lengths,
    batch_size: int,
    samples: int,
    room: int,
) -> _Candidate | None:
    """The cheapest candidate that fits."""
    most = lengths.of_samples(samples)
    sizes = {max(lengths.longest, min(size, most)) for size in _PASSES[setup.device]}
    best: _Candidate | None = None
    for tokens in sorted(sizes, reverse=True):
        for resident in _residence(setup):
            found = _fit(shape, setup, checkpointing, tokens, room, resident=resident)
            if found is None:
                continue
            keep, memory = found
            passes = max(math.ceil(batch_size / samples), math.ceil(batch_size * lengths.mean / tokens))
            overhead = passes * (_PASS_COST[setup.device][resident] + _idle(shape, setup, tokens))
            cost = batch_size * lengths.mean * (1 + _again(shape, setup, keep)) + overhead
            if best is None or cost < best.cost:
                best = _Candidate(tokens, keep, resident, memory, cost)
    return best


def _idle(shape: ModelShape, setup: Setup, tokens: int) -> float:
    """Tokens that a GPU could have computed while it waits for the launches of a pass: many where a model is small."""
    if setup.device == "cpu" or not setup.fast_path or tokens <= REPLAYED:
        return 0.0
    a_token = 4 * shape.linear_parameters / _OPERATIONS  # seconds
    return max(0.0, shape.layers * _LAUNCHES / a_token - tokens)


def _residence(setup: Setup) -> tuple[bool, ...]:
    if setup.fp8:
        return (True,)
    return (False, True) if setup.fast_path and setup.quantization.type != "none" else (False,)


def _fit(
    shape: ModelShape, setup: Setup, checkpointing: Auto | bool, tokens: int, room: int, *, resident: bool
) -> tuple[KeepCounts, Memory] | None:
    """The first, hence cheapest, way to keep values for passes of ``tokens`` tokens that fits."""
    for keep in _keeps(shape.layers, checkpointing, fast_path=setup.fast_path):
        memory = predict(shape, setup, tokens, keep, resident=resident)
        if memory.total <= room:
            return keep, memory
    return None


def _keeps(layers: int, checkpointing: Auto | bool, *, fast_path: bool) -> Iterator[KeepCounts]:
    """What blocks may keep, the cheapest first.

    A block without its MLP's inner values saves the most memory for what it costs, so all blocks go that way before
    the first one keeps its input alone.
    """
    if checkpointing is not True:
        yield KeepCounts(layers)
    if checkpointing is False:
        return
    if not fast_path:
        yield KeepCounts(0, 0, layers)
        return
    if checkpointing == "auto":
        yield from (KeepCounts(layers - count, count) for count in range(1, layers + 1))
        yield from (KeepCounts(0, layers - count, count) for count in range(1, layers))
    yield KeepCounts(0, 0, layers)


def _again(shape: ModelShape, setup: Setup, keep: KeepCounts) -> float:
    """What computing again adds to a step, as a share of it."""
    width, mlp, block = shape.hidden_size, shape.intermediate_size, shape.block_linear_parameters
    attention = 2 * width * mlp / block
    all_but_down = 1 - width * mlp / block if setup.fast_path else 1.0
    return _AGAIN * (attention * keep.attention + all_but_down * keep.input) / shape.layers


def _smallest(shape: ModelShape, setup: Setup, checkpointing: Auto | bool, lengths: Lengths) -> _Candidate:
    """One sample at a time, keeping as little as is allowed."""
    *_, keep = _keeps(shape.layers, checkpointing, fast_path=setup.fast_path)
    memory = predict(shape, setup, lengths.longest, keep, resident=setup.fp8)
    return _Candidate(lengths.longest, keep, setup.fp8, memory, math.inf)


def _nearest(shape: ModelShape, setup: Setup, spec: FineTuneSpec, lengths: Lengths, room: int) -> dict[str, Any] | None:
    """The fewest changes that would make one sample at a time fit: recompute, then 4 bits, then shorter samples."""
    changes: dict[str, Any] = {}
    checkpointing: Auto | bool = spec.hone.training.gradient_checkpointing
    if checkpointing is False:
        changes["hone.training.gradient_checkpointing"] = checkpointing = "auto"
        if _smallest(shape, setup, checkpointing, lengths).memory.total <= room:
            return changes
    if setup.quantization.type == "none":
        changes["hone.quantization.type"] = "nf4"
        setup = replace(setup, quantization=QuantizationSpec())
        if _smallest(shape, setup, checkpointing, lengths).memory.total <= room:
            return changes
    length = 1 << (lengths.longest - 1).bit_length() - 1
    while length >= _SHORTEST_CUT:
        if _smallest(shape, setup, checkpointing, lengths.cut(length)).memory.total <= room:
            return {**changes, "hone.data.max_seq_length": length}
        length //= 2
    return None


# --- Telling ---------------------------------------------------------------------------------------------------------


def _reasons(
    chosen: _Candidate, lengths: Lengths, batch_size: int, room: int, device: Device, *, fits: bool
) -> Iterator[str]:
    name = "GPU" if device == "cuda" else "processor"
    if not fits:
        yield (
            f"even one sample of {lengths.longest:,} tokens at a time needs {gigabytes(chosen.memory.total)}; "
            f"there are {gigabytes(room)}"
        )
        return
    passes = max(1, math.ceil(batch_size * lengths.mean / chosen.tokens))
    yield (
        f"at most {chosen.tokens:,} tokens a pass, so about {passes} pass{'es' if passes > 1 else ''} for a step of "
        f"{batch_size * lengths.mean:,.0f} tokens"
    )
    keep = chosen.keep
    if keep.attention or keep.input:
        told = [
            f"{count} blocks compute {what} again"
            for count, what in ((keep.attention, "their MLP's inner values"), (keep.input, "everything"))
            if count
        ]
        yield f"{' and '.join(told)} for their backward pass, because keeping all would not fit"
    else:
        yield "nothing is computed again, because everything that is kept fits"
    if chosen.resident:
        yield f"the base's weights stay dequantized ({gigabytes(chosen.memory.dequantized)}), because they fit"
    yield f"{gigabytes(chosen.memory.total)} of the {name}'s {gigabytes(room)} are expected to be needed"


def gigabytes(size: float) -> str:
    """Bytes for a reader."""
    return f"{size / 1e9:.1f} GB"
