"""An evaluation's answers: from the base model, then from the base with the adapter, in the same memory."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import TemplateError
from pydantic import ValidationError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from core.errors import TrainingError
from core.specs import DataSpec, Precision, PromptTemplate, QuantizationSpec
from worker.base_models import default_template, load_base, load_config, load_tokenizer
from worker.decode.decoder import decode
from worker.decode.network import uncovered
from worker.environment import device, fast_bfloat16
from worker.generate import Answer, generate, require_room
from worker.items import Item
from worker.merge import densify_, merge_adapter_
from worker.prompts import encode_prompt
from worker.protocol import EvaluationInput, Event, LineWriter, Progress


@dataclass(frozen=True)
class Answers:
    """The prompts as the model got them, their lengths in tokens, and the answers, in the items' order.

    ``base`` is None when there is nothing to compare: no adapter, or no comparison was asked for. ``seconds`` is the
    time spent generating, of both.
    """

    prompts: list[str]
    prompt_tokens: list[int]
    model: list[Answer]
    base: list[Answer] | None
    seconds: float


def answer_items(job: EvaluationInput, items: Sequence[Item], lines: LineWriter) -> Answers:
    """Generate the job's answers, telling how far it is. Raises HoneError for what trying again would not mend."""
    tokenizer = load_tokenizer(job.base_model, job.cache)
    trained = read_training(job.adapter)
    prompts = encode_items(job, items, tokenizer, trained.system_prompt)
    context = int(load_config(job.base_model, job.cache).max_position_embeddings)
    require_room(prompts, job.spec.sampling.max_tokens, context, [f"line {item.line}" for item in items])

    lines.send(Event(message=f"Loading base model {job.spec.base_model}"))
    model = load_base(job.base_model, job.cache, trained.quantization, _precision())
    densify_(model)

    why_not = uncovered(model, max(map(len, prompts)) + job.spec.sampling.max_tokens)
    if why_not is not None:
        lines.send(Event(message=f"Generating with transformers, which is slower: {why_not}", level="warn"))

    compare = job.adapter is not None and job.spec.compare_base
    teller = _Teller(lines, total=len(items) * (2 if compare else 1))
    base = None
    if compare or job.adapter is None:
        base = _generate(job, model, tokenizer, prompts, teller=teller, whose="the base model", why_not=why_not)
    tuned = base
    if job.adapter is not None:
        merge_adapter_(model, job.adapter)
        whose = "the fine-tuned model"
        tuned = _generate(job, model, tokenizer, prompts, teller=teller, whose=whose, why_not=why_not)
    assert tuned is not None  # the base's where there is no adapter
    texts = [str(tokenizer.decode(prompt)) for prompt in prompts]
    lengths = [len(prompt) for prompt in prompts]
    return Answers(texts, lengths, tuned, base if compare else None, teller.seconds)


def encode_items(
    job: EvaluationInput, items: Sequence[Item], tokenizer: PreTrainedTokenizerBase, system_prompt: str | None = None
) -> list[list[int]]:
    """Each item's prompt in tokens; ``system_prompt`` stands before messages that have none of their own.

    Raises TrainingError naming the line where the template can't render its turns.
    """
    template = _template(job, tokenizer)
    prompts = []
    for item in items:
        try:
            prompts.append(encode_prompt(item.messages, template, tokenizer, system_prompt))
        except TemplateError as error:
            raise TrainingError(
                f"line {item.line}: the model's chat template refuses these messages: {error}. Change the roles of the "
                "run's messages, or choose another prompt template.",
                code="template_refused",
            ) from error
    return prompts


def _template(job: EvaluationInput, tokenizer: PreTrainedTokenizerBase) -> PromptTemplate:
    """The run's own template, else the one the adapter was trained with, else the base's."""
    if job.spec.prompt_template != "auto":
        return job.spec.prompt_template
    if job.prompt_template != "auto":
        return job.prompt_template
    return default_template(job.base_model, tokenizer)


@dataclass(frozen=True)
class TrainedWith:
    """What an adapter was trained with: its base has to be kept and asked in the same way."""

    quantization: QuantizationSpec = field(default_factory=QuantizationSpec)
    system_prompt: str | None = None


def read_training(adapter: Path | None) -> TrainedWith:
    """What an adapter was trained with, by its manifest; the defaults where there is none of these."""
    if adapter is None or not (adapter / "manifest.json").is_file():
        return TrainedWith()
    try:
        asked = json.loads((adapter / "manifest.json").read_text(encoding="utf-8"))["spec"]["hone"]
        data = DataSpec.model_validate(asked["data"])
        return TrainedWith(QuantizationSpec.model_validate(asked["quantization"]), data.system_prompt)
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise TrainingError(
            "The adapter's manifest.json does not say how its base model was quantized and prompted. "
            "Train the adapter again.",
            code="adapter_unusable",
        ) from error


def _precision() -> Precision:
    """On a processor always float32: answers there are few, and equal everywhere."""
    return "bfloat16" if device() == "cuda" and fast_bfloat16() else "float32"


class _Teller:
    """Tells how far generation is; ``seconds`` is what it has taken so far."""

    def __init__(self, lines: LineWriter, total: int) -> None:
        self._lines, self._total = lines, total
        self._done = 0
        self._before = self._since = 0.0
        self._running = False

    @property
    def seconds(self) -> float:
        return self._before + (time.monotonic() - self._since if self._running else 0.0)

    def start(self, message: str) -> None:
        self._lines.send(Event(message=message))
        self._since, self._running = time.monotonic(), True
        self._send()

    def batch(self, answered: list[tuple[int, Answer]]) -> None:
        self._done += len(answered)
        self._send()

    def end(self) -> None:
        self._before, self._running = self.seconds, False

    def _send(self) -> None:
        left = self.seconds / self._done * (self._total - self._done) if self._done else None
        self._lines.send(Progress(done=self._done, total=self._total, seconds_left=left))


def _generate(
    job: EvaluationInput,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    *,
    teller: _Teller,
    whose: str,
    why_not: str | None,
) -> list[Answer]:
    noun = "answer" if len(prompts) == 1 else "answers"
    teller.start(f"Generating {len(prompts):,} {noun} with {whose}")
    make = decode if why_not is None else generate
    answers = make(model, tokenizer, prompts, job.spec.sampling, on_batch=teller.batch)
    teller.end()
    return answers
