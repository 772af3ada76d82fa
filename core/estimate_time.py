"""How long a fine-tune takes: from what earlier jobs like it measured, else from a guess that says so.

A job's seconds go into loading its base, which a worker that has just trained on it is spared, into steps, into
validations, and into the rest, such as preparing the data and saving.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from core.memory import Device
from core.resolve import Resolved
from core.shape import ModelShape
from core.specs import Precision

Method = Literal["supervised", "dpo"]

#: A forward pass alone is so many times as fast as a training step. DPO's steps and validations both go through the
#: reference, forward, as well: three units of work against two.
_VALIDATION_SPEED: dict[Method, float] = {"supervised": 2.5, "dpo": 1.5}
#: Tokens a second times parameters of a training step, before anything was measured here. An H100 trains Llama-2-7B's
#: shape at 18,900 tokens/s; two AVX2 cores SmolLM2-135M at 60 to 150.
_PRIOR = {"cuda": 18_900 * 6.7e9, "cpu": 100 * 1.35e8}
#: An H100's share of that by other cards, from their tensor throughput in bfloat16; the first name that matches.
_CARDS = {
    "H200": 1.0, "H100": 1.0, "B200": 2.0, "A100": 0.32, "L40": 0.36, "4090": 0.33, "5090": 0.42, "A6000": 0.16,
    "A10": 0.13, "L4": 0.12, "T4": 0.03, "3090": 0.14,
}  # fmt: skip
#: Small models are bound by launches: SmolLM2-135M reached 31,500 on an H100.
_MOST_PRIOR = 31_500
#: What each further GPU of a job adds to the speed, before it was measured.
_ANOTHER_GPU = 0.85
#: DPO's speed as a share of supervised training's: the reference's forward pass, and TRL's model for the fast path.
_DPO_PRIOR = 2 / 3 * 0.6
#: How far off the first guess may be, either way; and how far what was measured here, for jobs of another size.
_PRIOR_SPREAD = 2.5
_MEASURED_SPREAD = 1.12
#: Seconds to read a base model, a gigabyte, to start Python with torch, and for all else beside the steps.
_LOAD_A_GB = 4.0
_START = 9.0
_REST = 3.0
#: Parameters that are assumed of a model that is not known.
_UNKNOWN_PARAMETERS = 6_738_415_616


@dataclass(frozen=True)
class Measured:
    """One earlier job: how it was trained, tokens a second of its steps, and the seconds that went into no step."""

    tokens_per_second: float
    other_seconds: float
    trained_tokens: int
    #: Of loading the base; None where it was loaded already, or where that was not told apart.
    load_seconds: float | None = None
    method: Method = "supervised"
    precision: Precision = "bfloat16"
    fast_path: bool = True


@dataclass(frozen=True)
class Task:
    """A job whose time is asked for."""

    method: Method
    resolved: Resolved
    #: Of all steps, and of one validation.
    tokens: int
    validation_tokens: float
    gpus: int
    shape: ModelShape | None
    #: Whether the worker has the base in memory; None: one may have it, another not.
    base_loaded: bool | None

    @property
    def work(self) -> float:
        """Tokens of the steps, and those that would take as long as the validations."""
        return self.tokens + all_validations(self.resolved, self.validation_tokens) / _VALIDATION_SPEED[self.method]

    def like(self, measured: Sequence[Measured]) -> list[Measured]:
        """Those that were trained as this job will be."""
        mine = (self.method, self.resolved.precision, self.resolved.plan.fast_path)
        return [job for job in measured if (job.method, job.precision, job.fast_path) == mine]


def tell_time(task: Task, name: str, device: Device, measured: Sequence[Measured]) -> dict[str, Any]:
    """A range of seconds on the device of that name, given the jobs that were ``measured`` on it."""
    like = task.like(measured)
    load = _load_seconds(task, measured)
    if like:
        speeds = sorted(job.tokens_per_second for job in like)
        low, high = speeds[0] / _MEASURED_SPREAD, speeds[-1] * _MEASURED_SPREAD
        other = statistics.median(job.other_seconds for job in like)
        seconds = (task.work / high + other * 0.9, task.work / low + other * 1.1)
        message = f"From {len(like)} job{'s' if len(like) > 1 else ''} like this one on this base and {name}."
    else:
        speed = _prior(task, name, device)
        low, high = speed / _PRIOR_SPREAD, speed * _PRIOR_SPREAD
        seconds = (task.work / high + _REST / 2, task.work / low + _REST * 2)
        message = (
            f"A guess: no job like this one on this base has ended on {name} yet. The first one makes it a measurement."
        )
    return {
        "low_seconds": round(seconds[0] + (0 if task.base_loaded is not False else load)),
        "high_seconds": max(1, round(seconds[1] + (0 if task.base_loaded else load))),
        "load_seconds": round(load, 1),
        "base_loaded": task.base_loaded,
        "tokens_per_second": {"low": round(low, 1), "high": round(high, 1)},
        "basis": "measured" if like else "prior",
        "jobs": len(like),
        "message": f"{message} {_loading(task.base_loaded, load)}",
    }


def _loading(loaded: bool | None, seconds: float) -> str:
    told = f"{max(1, round(seconds)):,} s"
    if loaded:
        return f"The base is loaded; loading it would take {told} more."
    if loaded is None:
        return f"The longer time includes {told} to load the base, which a worker that has it is spared."
    return f"{told} of it are for loading the base."


def _load_seconds(task: Task, measured: Sequence[Measured]) -> float:
    """Of any method: the base is the same."""
    found = [job.load_seconds for job in measured if job.load_seconds is not None]
    if found:
        return statistics.median(found)
    return _START + _parameters(task.shape) * 2 / 1e9 * _LOAD_A_GB


def _prior(task: Task, name: str, device: Device) -> float:
    share = _DPO_PRIOR if task.method == "dpo" else 1.0
    parameters = _parameters(task.shape)
    if device == "cpu":
        return share * _PRIOR["cpu"] / parameters
    card = next((part for known, part in _CARDS.items() if known in name), 0.15)
    one = min(_MOST_PRIOR, _PRIOR["cuda"] * card / parameters)
    return share * one * (1 + _ANOTHER_GPU * (task.gpus - 1))


def _parameters(shape: ModelShape | None) -> int:
    return _UNKNOWN_PARAMETERS if shape is None else shape.parameters


def all_validations(resolved: Resolved, tokens: float) -> float:
    """Tokens of all validations, given those of one: at the start, every so many steps, and at the end."""
    return tokens * (1 + math.ceil(resolved.total_steps / resolved.eval_steps)) if tokens else 0.0


def measured_job(
    resolved: Resolved, report: dict[str, Any], method: Method, tokens_per_second: float, tokens: int
) -> Measured:
    """What a finished run of ``tokens`` in all its steps measured, from its report."""
    data, run = report["dataset"], report["run"]
    mean = data["tokens_per_epoch"] / max(1, data["train_samples"])
    if method == "dpo":  # its steps count the padding
        mean = tokens / max(1, resolved.total_steps * resolved.batch_size)
    validations = all_validations(resolved, data["validation_samples"] * mean) / _VALIDATION_SPEED[method]
    before = float(run.get("fetch_seconds", 0)) + float(run.get("load_seconds", 0))
    other = float(run["seconds"]) - before - (tokens + validations) / tokens_per_second
    return Measured(
        tokens_per_second=tokens_per_second,
        other_seconds=max(0.0, other),
        trained_tokens=tokens,
        load_seconds=float(run["load_seconds"]) if run.get("warm") is False else None,
        method=method,
        precision=resolved.precision,
        fast_path=resolved.plan.fast_path,
    )
