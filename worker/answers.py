"""An evaluation's answers: from the base model, then from the base with the adapter, in the same memory."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from jinja2 import TemplateError
from pydantic import ValidationError
from transformers import PreTrainedTokenizerBase

from core.errors import TrainingError
from core.specs import DataSpec, EvaluationSpec, Precision, PromptTemplate, QuantizationSpec
from worker.answer import Answer
from worker.base_models import default_template, load_base, load_config, load_tokenizer
from worker.decode.decoder import decode
from worker.decode.network import uncovered
from worker.environment import device, fast_bfloat16
from worker.generate import generate, require_room
from worker.items import Item
from worker.kept import Kept, Side
from worker.merge import densify_, merge_adapter_
from worker.prompts import encode_prompt
from worker.protocol import Answered, EvaluationInput, Event, LineWriter, Progress
from worker.score_report import Asked

#: Gets the side, the item's number and its answer.
OnAnswer = Callable[[Side, int, Answer], None]


def answer_items(
    job: EvaluationInput, items: Sequence[Item], kept: Kept, lines: LineWriter, *, on_answer: OnAnswer
) -> Asked:
    """Generate the job's answers, telling each as it comes, and how far it is.

    What an earlier attempt answered is taken from ``kept``. ``on_answer`` gets those and the new ones. Raises HoneError
    for what trying again would not mend.
    """
    assert job.base_model is not None  # the worker gives one wherever a model is asked
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
    teller = _Teller(lines, total=len(items) * (2 if compare else 1), kept=kept, on_answer=on_answer)
    make = decode if why_not is None else generate

    def ask(side: Side, whose: str) -> list[Answer]:
        teller.start(side, len(prompts), whose)
        answers = make(
            model,
            tokenizer,
            prompts,
            job.spec.sampling,
            fence=_fence(job.spec),
            kept=kept.answers[side],
            on_batch=teller.batch,
        )
        teller.end()
        return answers

    base = ask("base", "the base model") if compare else None
    if job.adapter is not None:
        merge_adapter_(model, job.adapter)
    tuned = ask("model", "the base model" if job.adapter is None else "the fine-tuned model")
    texts = [str(tokenizer.decode(prompt)) for prompt in prompts]
    lengths = [len(prompt) for prompt in prompts]
    return Asked(texts, lengths, tuned, base, teller.seconds, teller.made_tokens, len(kept))


def _fence(spec: EvaluationSpec) -> str | None:
    """The language whose closed code block ends an answer: where it is all that any criterion looks at."""
    langs = {criterion.lang for criterion in spec.criteria if criterion.type == "code_bleu"}
    return langs.pop() if spec.stops_at_fence and len(langs) == 1 else None


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
    assert job.base_model is not None  # as in answer_items
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
    """Tells answers and how far generation is; ``seconds`` and ``made_tokens`` are this attempt's."""

    def __init__(self, lines: LineWriter, total: int, kept: Kept, on_answer: OnAnswer) -> None:
        self._lines, self._total, self._kept, self._on_answer = lines, total, kept, on_answer
        self._side: Side = "model"
        self._done = self._made = 0
        self._before = self._since = 0.0
        self._running = False
        self.made_tokens = 0

    @property
    def seconds(self) -> float:
        return self._before + (time.monotonic() - self._since if self._running else 0.0)

    def start(self, side: Side, prompts: int, whose: str) -> None:
        self._side, kept = side, self._kept.answers[side]
        self._lines.send(Event(message=_told(prompts, len(kept), whose)))
        for position, answer in kept.items():
            self._on_answer(side, position, answer)
        self._done += len(kept)
        self._since, self._running = time.monotonic(), True
        self._send()

    def batch(self, answered: list[tuple[int, Answer]]) -> None:
        for position, answer in answered:
            self._lines.send(Answered(side=self._side, position=position, answer=asdict(answer)))
            self._on_answer(self._side, position, answer)
            self.made_tokens += answer.tokens
        self._done += len(answered)
        self._made += len(answered)
        self._send()

    def end(self) -> None:
        self._before, self._running = self.seconds, False

    def _send(self) -> None:
        left = self.seconds / self._made * (self._total - self._done) if self._made else None
        self._lines.send(Progress(done=self._done, total=self._total, seconds_left=left))


def _told(prompts: int, kept: int, whose: str) -> str:
    noun = "answer" if prompts == 1 else "answers"
    had = f"; {kept:,} are there from the attempt before" if kept else ""
    return f"Generating {prompts:,} {noun} with {whose}{had}"
