"""What a fine-tune will take: steps, tokens, memory by part, where it fits, and how long it takes (estimate_time).

Pure arithmetic on what a preflight counted, on the base model's card, on what workers told of themselves, and on what
earlier jobs measured.
"""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from core.base_card import BaseCard
from core.errors import InvalidRequestError
from core.estimate_time import Measured, Task, tell_time
from core.memory import Device, weights_by_bits
from core.plan import gigabytes
from core.preflight import Profile
from core.preflight_report import cut_report, quantile, trained_tokens
from core.resolve import Facts, Resolved, resolve
from core.shape import ModelShape, read_shape
from core.specs import FineTuneSpec

Basis = Literal["preflight", "sample", "characters"]

#: Characters a token, where there is no tokenizer: English and code have 3 to 4.
CHARACTERS_A_TOKEN = 3.2
#: What is assumed while no worker has told of itself: a card as many have.
_ASSUMED_GPU = 24 * 10**9


@dataclass(frozen=True)
class Data:
    """A training file: its samples, and the lengths of all or some of them."""

    samples: int
    profile: Profile
    basis: Basis
    #: Samples of the validation file; None where the training file gives some up for it.
    validation_samples: int | None = None


@dataclass(frozen=True)
class Worker:
    """One kind of machine that workers told of."""

    name: str
    device: Device
    memory: int
    fast_bfloat16: bool
    workers: int = 1
    alive: bool = True
    #: GPUs of one such machine.
    gpus: int = 1


@dataclass(frozen=True)
class _Sizes:
    """Samples, and tokens of them: in an epoch, and of one sample on average."""

    train: int
    validation: int
    per_epoch: int
    trained_per_epoch: int
    mean: float
    #: What goes through the model for one sample: with the padding of a preference's two sequences.
    computed: float


def from_characters(lengths: Counter[int]) -> Profile:
    """A guess of the lengths in tokens, half of them trained."""
    profile = Profile()
    for characters, count in lengths.items():
        length = math.ceil(characters / CHARACTERS_A_TOKEN)
        profile.lengths[length] += count
        profile.starts[length // 2] += count
        profile.ends[length] += count
        profile.firsts[length // 2] += count
        profile.lasts[max(0, length - 1)] += count
    return profile


def estimate(
    spec: FineTuneSpec,
    data: Data,
    card: BaseCard | None,
    workers: list[Worker],
    measured: dict[str, list[Measured]],
    *,
    base_loaded: bool | None = False,
) -> dict[str, Any]:
    """The estimate as it goes onto the wire. ``measured`` holds earlier jobs on this base by the device's name.

    ``base_loaded`` is whether the worker that will take the job has the base in memory; None where it depends.
    """
    shape, warning = _shape(card)
    warnings = [warning] if warning else []
    assumed = Worker("a GPU of 24 GB", "cuda", _ASSUMED_GPU, True)
    if not workers:
        warnings.append("No worker has told of itself yet: the figures are those of a GPU of 24 GB.")
    if data.basis != "preflight":
        warnings.append(_basis_warning(data.basis))
    if spec.hone.evaluation.codebleu_steps != "off":
        warnings.append("CodeBLEU while training comes on top of the time: answers are generated for it.")
    planned = [(worker, settle(spec, data, card, shape, worker)) for worker in workers or [assumed]]
    best, resolved = min(planned, key=lambda pair: _preference(spec, *pair))
    fitting = [fits(spec, *pair) for pair in planned]
    sizes = _sizes(spec, data, resolved)
    tokens = _tokens(sizes, resolved)
    task = Task(
        method="supervised" if spec.dpo is None else "dpo",
        resolved=resolved,
        tokens=tokens,
        validation_tokens=sizes.validation * sizes.computed,
        gpus=spec.hone.training.gpus,
        shape=shape,
        base_loaded=base_loaded,
    )
    known = shape is not None and card is not None
    return {
        "object": "fine_tuning.job.estimate",
        "model": spec.model,
        "data": {
            "samples": data.samples,
            "validation_samples": sizes.validation,
            "mean_tokens": round(sizes.mean, 1),
            "longest_tokens": max(data.profile.lengths),
            "max_seq_length": resolved.max_seq_length,
            "tokens_per_epoch": sizes.per_epoch,
            "trained_tokens_per_epoch": sizes.trained_per_epoch,
            "basis": data.basis,
        },
        "steps": resolved.total_steps,
        "trained_tokens": tokens,
        **_settings(resolved, known=known),
        "parameters": _parameters(shape, spec) if known and shape else None,
        "memory": _memory(shape, spec, resolved) if known and shape else None,
        "devices": [_device(spec, *pair) for pair in planned] if workers and known else [],
        "fits": any(fitting) if workers and known else None,
        "nearest": _nearest(spec, best, resolved) if workers and known and not any(fitting) else None,
        "time": tell_time(task, best.name, best.device, measured.get(best.name, [])),
        "warnings": warnings,
    }


def _shape(card: BaseCard | None) -> tuple[ModelShape | None, str | None]:
    if card is None:
        return None, "The base model's configuration is not at hand yet, so its memory can't be told."
    try:
        return read_shape(card.config), None
    except InvalidRequestError as error:
        return None, error.message


#: Llama-2-7B's, for steps and lengths of a model whose own is not known; no memory is told from it.
_UNKNOWN = ModelShape(
    hidden_size=4096, intermediate_size=11_008, layers=32, heads=32, kv_heads=32, head_dim=128, vocab_size=32_000
)


def settle(spec: FineTuneSpec, data: Data, card: BaseCard | None, shape: ModelShape | None, worker: Worker) -> Resolved:
    """The settings as that worker would run them."""
    lengths = data.profile.lengths
    count = lengths.total()
    mean = sum(length * times for length, times in lengths.items()) / count
    variance = sum((length - mean) ** 2 * times for length, times in lengths.items()) / count
    return resolve(
        spec,
        Facts(
            train_samples=_train_samples(spec, data),
            mean_tokens=mean,
            p90_tokens=quantile(lengths, 0.9),
            longest_tokens=max(lengths),
            deviation_tokens=math.sqrt(variance),
            context_length=card.config.get("max_position_embeddings", 2048) if card else 2048,
            shape=shape or _UNKNOWN,
            available_memory=worker.memory,
            device=worker.device,
            fast_bfloat16=worker.fast_bfloat16,
            fast_path=spec.dpo is None and (card.fast_path if card else True),
            prompt_template=card.default_template if card else "alpaca",
        ),
    )


def _train_samples(spec: FineTuneSpec, data: Data) -> int:
    fraction = spec.hone.data.validation_fraction
    if data.validation_samples is not None or fraction == 0 or data.samples < 2:
        return data.samples
    return data.samples - max(1, round(fraction * data.samples))


def fits(spec: FineTuneSpec, worker: Worker, resolved: Resolved) -> bool:
    """Whether that machine has the memory, and the GPUs, that the job asks for."""
    return resolved.plan.fits and max(1, worker.gpus) >= spec.hone.training.gpus


def _preference(spec: FineTuneSpec, worker: Worker, resolved: Resolved) -> tuple[bool, bool, int]:
    """Where it fits, then a GPU, then the largest."""
    return not fits(spec, worker, resolved), worker.device != "cuda", -worker.memory


def _sizes(spec: FineTuneSpec, data: Data, resolved: Resolved) -> _Sizes:
    """Samples and tokens of an epoch after the cut; of the whole file's, the training part's share."""
    train = _train_samples(spec, data)
    validation = data.samples - train if data.validation_samples is None else data.validation_samples
    profile, cut = data.profile, resolved.max_seq_length
    counted = profile.lengths.total()
    kept = 1 - cut_report(profile, cut, "")["nothing_trained"] / counted
    within, trained = _cut_total(profile.lengths, cut) / counted, trained_tokens(profile, cut) / counted
    if spec.dpo is None:
        return _Sizes(train, validation, round(train * kept * within), round(train * kept * trained), within, within)
    # Both answers of a pair. Where the shorter ones were not counted, they are taken to be as long.
    other = _cut_total(profile.shorter, cut) / profile.shorter.total() if profile.shorter else within
    return _Sizes(
        train,
        validation,
        round(train * kept * (within + other)),
        round(train * kept * max(0.0, 2 * trained + other - within)),
        within,
        2 * _longest_of(resolved.microbatch_size, profile.lengths, cut),
    )


def _cut_total(lengths: Counter[int], cut: int) -> int:
    return sum(min(length, cut) * times for length, times in lengths.items())


def _longest_of(count: int, lengths: Counter[int], cut: int) -> float:
    """The longest of so many samples, drawn at random, on average: what a pass of padded rows is as long as."""
    total, below, mean = lengths.total(), 0, 0.0
    for length in sorted(lengths):
        upto = below + lengths[length]
        mean += min(length, cut) * ((upto / total) ** count - (below / total) ** count)
        below = upto
    return mean


def _tokens(sizes: _Sizes, resolved: Resolved) -> int:
    """Tokens of all steps, as the finished job will count them; a limit on the steps ends the last epoch early."""
    epochs_steps = math.ceil(sizes.train / resolved.batch_size) * resolved.n_epochs
    per_epoch = sizes.per_epoch if sizes.computed == sizes.mean else sizes.train * sizes.computed
    return round(per_epoch * resolved.n_epochs * min(1.0, resolved.total_steps / epochs_steps))


def _settings(resolved: Resolved, *, known: bool) -> dict[str, Any]:
    names = ("learning_rate", "warmup_steps", "eval_steps", "save_steps", "precision")
    planned = ("microbatch_size", "gradient_checkpointing") if known else ()
    told = resolved.model_dump(mode="json")
    return {
        "hyperparameters": {name: told[name] for name in ("n_epochs", "batch_size", "learning_rate_multiplier")},
        "hone": {
            "training": {name: told[name] for name in (*names, *planned)},
            "data": {name: told[name] for name in ("max_seq_length", "prompt_template")},
            "reasons": resolved.reasons,
        },
    }


# --- Memory ----------------------------------------------------------------------------------------------------------


def _parameters(shape: ModelShape, spec: FineTuneSpec) -> dict[str, Any]:
    trainable = shape.adapter_parameters(spec.hone.lora)
    total = shape.parameters + trainable
    return {"total": total, "trainable": trainable, "share": round(trainable / total, 6)}


def _memory(shape: ModelShape, spec: FineTuneSpec, resolved: Resolved) -> dict[str, Any]:
    by_bits = weights_by_bits(shape, double_quantization=spec.hone.quantization.double_quantization)
    memory, quantization = resolved.plan.memory, spec.hone.quantization.type
    kind = f"4-bit {quantization.upper()}" if quantization != "none" else resolved.precision
    rows = [
        ("weights", f"Base model, {kind}", memory.weights),
        ("dequantized", "Base model's weights as they are computed with", memory.dequantized),
        ("adapters", "Adapters, float32", memory.adapters),
        ("gradients", "Gradients of the adapters", memory.gradients),
        ("optimizer", f"Optimizer ({resolved.optimizer})", memory.optimizer),
        ("activations", f"Activations of {resolved.pass_tokens:,} tokens a pass", memory.activations),
        ("head", "Logits and loss", memory.head),
        ("overhead", "Libraries, workspace and what the allocator can't use", memory.overhead + memory.workspace),
    ]
    return {
        "weights_32_bit": by_bits[32],
        "weights_16_bit": by_bits[16],
        "weights_4_bit": by_bits[4],
        "parts": [{"name": name, "title": title, "bytes": size} for name, title, size in rows if size],
        "peak": resolved.plan.needed,
    }


def _device(spec: FineTuneSpec, worker: Worker, resolved: Resolved) -> dict[str, Any]:
    plan = resolved.plan
    wanted = spec.hone.training.gpus
    few = [f"it has {worker.gpus} GPUs of the {wanted} that are asked for"] if max(1, worker.gpus) < wanted else []
    return {
        "name": worker.name,
        "device": worker.device,
        "memory": worker.memory,
        "workers": worker.workers,
        "alive": worker.alive,
        "fits": fits(spec, worker, resolved),
        "peak": plan.needed,
        "reason": "; ".join([*few, *plan.reasons]),
    }


def _nearest(spec: FineTuneSpec, worker: Worker, resolved: Resolved) -> dict[str, Any]:
    """What to change so that it fits, in a sentence too."""
    plan = resolved.plan
    if plan.fits:
        message = f"{worker.name} has {worker.gpus} GPUs of the {spec.hone.training.gpus} that are asked for."
        return {"changes": {"hone.training.gpus": max(1, worker.gpus)}, "message": message, "peak": plan.needed}
    told = (
        f"The job needs {gigabytes(plan.needed)}, and {worker.name} has {gigabytes(plan.available)} for it: "
        f"{'; '.join(plan.reasons)}."
    )
    if plan.nearest is None:
        return {"changes": {}, "message": f"{told} No setting makes it fit. Use a smaller model.", "peak": plan.needed}
    wanted = " and ".join(f"{name} to {_word(value)}" for name, value in plan.nearest.items())
    return {"changes": plan.nearest, "message": f"{told} It fits if you set {wanted}.", "peak": plan.needed}


def _word(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value).lower()


def _basis_warning(basis: Basis) -> str:
    if basis == "sample":
        return "Lengths are those of the file's first samples. A preflight of the file makes them exact."
    return f"Lengths are guessed at {CHARACTERS_A_TOKEN} characters a token: the base model's tokenizer is not at hand."
