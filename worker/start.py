"""What every training job does before it has a trainer, be it supervised (worker.train) or on pairs."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import pstdev
from typing import Any

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from core.resolve import Facts, Resolved
from core.shape import read_shape
from core.specs import Precision, PromptTemplate
from worker.base_models import Bases, Wanted, default_template, loading, locate
from worker.clock import Clock
from worker.environment import device, fast_bfloat16, fast_fp8, hardware, versions
from worker.gpu_lock import hold_gpu
from worker.model_report import model_report
from worker.progress import StopRequest
from worker.protocol import Event, LineWriter, TrainingInput
from worker.trainer import add_adapter


def make_ready(job: TrainingInput, lines: LineWriter, stop: StopRequest, clock: Clock) -> bool:
    """Hold the GPU and have the base model's files; False when a stop was asked for while others held it."""
    if not hold_gpu(lambda message: lines.send(Event(message=message)), lambda: stop.asked):
        return False
    with clock.spending("fetch"):
        locate(job.base_model, job.cache)
    lines.send(Event(message="Preparing the data"))
    return True


def choose_template(job: TrainingInput, tokenizer: PreTrainedTokenizerBase) -> PromptTemplate:
    """The job's prompt template, or the base model's own."""
    template = job.spec.hone.data.prompt_template
    return default_template(job.base_model, tokenizer) if template == "auto" else template


def gather_facts(
    lengths: Sequence[int], config: Any, template: PromptTemplate, *, memory: int, fast_path: bool
) -> Facts:
    """What every "auto" depends on: samples of so many tokens each, the model's configuration, this machine.

    ``memory`` is what is free, in bytes; ``fast_path`` whether the worker's own blocks cover the model and the method.
    """
    ordered = sorted(lengths)
    return Facts(
        train_samples=len(ordered),
        mean_tokens=sum(ordered) / len(ordered),
        p90_tokens=ordered[int(0.9 * (len(ordered) - 1))],
        longest_tokens=ordered[-1],
        deviation_tokens=pstdev(ordered),
        context_length=config.max_position_embeddings,
        shape=read_shape(config.to_dict()),
        available_memory=memory,
        device=device(),
        fast_bfloat16=fast_bfloat16(),
        fast_path=fast_path,
        fast_fp8=fast_fp8(),
        prompt_template=template,
    )


@dataclass(frozen=True)
class Adapted:
    """The base in 4 bits with a fresh adapter in float32. ``warm``: the base was in memory already.

    ``report`` is what a manifest says of the model, the hardware and the versions.
    """

    model: PeftModel
    warm: bool
    report: dict[str, Any]


def adapt_base(job: TrainingInput, resolved: Resolved, bases: Bases, lines: LineWriter, clock: Clock) -> Adapted:
    """Borrow the base and wrap it. Raises TrainingError as ``worker.base_models.load_base``."""
    as_loaded: Precision = "bfloat16" if resolved.precision == "fp8" else resolved.precision
    wanted = Wanted(job.base_model, job.cache, job.spec.hone.quantization, as_loaded)
    warm = bases.has(wanted)
    lines.send(Event(message=loading(job.spec.model, warm=warm)))
    with clock.spending("load"):
        base = bases.lend(wanted)
    base.config.use_cache = False
    model = add_adapter(base, job.spec.hone.lora, name=job.spec.model, seed=job.spec.seed)
    return Adapted(model, warm, {"model": model_report(model), "hardware": hardware(), "versions": versions()})
