"""Prompts: a sample's turns into tokens, and which of them count in the loss.

A template renders turns into segments, each trained or not; segments are tokenized one by one, so that the prompt of an
evaluation has exactly the tokens that the same prompt had in training. The tokenizer adds nothing of its own: the
beginning token stands once at most, and every trained answer ends with the end-of-sequence token, which is trained too.

The worker renders with transformers' tokenizer and the preflight with a ``core.base_card``'s: one code for both.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from core.dataset import Message, Sample
from core.errors import TrainingError
from core.specs import PromptTemplate


class PromptTokenizer(Protocol):
    """What rendering needs of a tokenizer."""

    @property
    def eos_token(self) -> str:
        """The end-of-sequence token's text."""

    @property
    def eos_token_id(self) -> int:
        """Its id."""

    @property
    def bos_token(self) -> str | None:
        """The beginning token's text, where there is one."""

    @property
    def begin_id(self) -> int | None:
        """The beginning token's id, if this tokenizer starts texts with one."""

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, with nothing added."""

    def chat(self, turns: list[dict[str, str]], *, open_answer: bool) -> str:
        """The turns in the model's own chat template, with the opening of an answer behind them if wanted."""


@dataclass(frozen=True)
class Segment:
    """A stretch of text, and whether its tokens count in the loss."""

    text: str
    trained: bool


@dataclass(frozen=True)
class Encoded:
    """A sample's token ids, and for each whether it counts in the loss."""

    input_ids: list[int]
    trained: list[bool]


def encode_sample(
    sample: Sample, template: PromptTemplate, tokenizer: PromptTokenizer, system_prompt: str | None = None
) -> Encoded:
    """A training sample as tokens. Raises TrainingError when the template can't render its turns."""
    return _encode(sample_segments(sample, template, tokenizer, system_prompt), tokenizer)


def encode_samples(
    samples: Sequence[Sample], template: PromptTemplate, tokenizer: PromptTokenizer, system_prompt: str | None = None
) -> list[Encoded]:
    """As ``encode_sample`` of each, with all texts tokenized at once."""
    rendered = [sample_segments(sample, template, tokenizer, system_prompt) for sample in samples]
    tokens = iter(tokenizer.encode_all([segment.text for segments in rendered for segment in segments]))
    return [join(segments, [next(tokens) for _ in segments], tokenizer) for segments in rendered]


def sample_segments(
    sample: Sample, template: PromptTemplate, tokenizer: PromptTokenizer, system_prompt: str | None = None
) -> list[Segment]:
    """A training sample as stretches of text. Raises TrainingError when the template can't render its turns."""
    return _render(_with_system(sample.messages, system_prompt), template, tokenizer, open_answer=False)


def encode_prompt(
    messages: Sequence[Message],
    template: PromptTemplate,
    tokenizer: PromptTokenizer,
    system_prompt: str | None = None,
) -> list[int]:
    """The tokens that an answer follows, ending where the assistant's turn begins."""
    turns = _with_system(tuple(messages), system_prompt)
    return _encode(_render(turns, template, tokenizer, open_answer=True), tokenizer).input_ids


def _with_system(messages: tuple[Message, ...], system_prompt: str | None) -> tuple[Message, ...]:
    if system_prompt is None or messages[0].role == "system":
        return messages
    return (Message("system", system_prompt), *messages)


def _encode(segments: list[Segment], tokenizer: PromptTokenizer) -> Encoded:
    return join(segments, tokenizer.encode_all([segment.text for segment in segments]), tokenizer)


def join(segments: Sequence[Segment], tokens: Sequence[list[int]], tokenizer: PromptTokenizer) -> Encoded:
    """Segments whose ``tokens`` are known, as one sample: with its beginning token, and an end after each answer."""
    ids: list[int] = []
    trained: list[bool] = []
    if tokenizer.begin_id is not None and not segments[0].text.startswith(tokenizer.bos_token or "\0"):
        ids, trained = [tokenizer.begin_id], [False]
    for segment, found in zip(segments, tokens, strict=True):
        ids += found
        if segment.trained and (not found or found[-1] != tokenizer.eos_token_id):
            ids.append(tokenizer.eos_token_id)
        trained += [segment.trained] * (len(ids) - len(trained))
    return Encoded(ids, trained)


_Renderer = Callable[..., list[Segment]]


def _render(
    messages: tuple[Message, ...], template: PromptTemplate, tokenizer: PromptTokenizer, *, open_answer: bool
) -> list[Segment]:
    if template == "chat":
        return _chat(messages, tokenizer, open_answer=open_answer)
    return _TEMPLATES[template](messages, open_answer=open_answer)


def one_text(turn: Message, template: PromptTemplate) -> str:
    """A turn as one text: an instruction with its input joined as the template joins them.

    A turn with this as its content is rendered to the same text, so an evaluation asks what was trained.
    """
    if turn.input is None:
        return turn.content
    if template == "llama2":
        return f"Instruction: {turn.content}\nInput: {turn.input}"
    if template == "alpaca":
        return f"{turn.content}\n\n### Input:\n{turn.input}"
    return f"{turn.content}\n\n{turn.input}"


# --- The model's own chat template -----------------------------------------------------------------------------------


def _chat(messages: tuple[Message, ...], tokenizer: PromptTokenizer, *, open_answer: bool) -> list[Segment]:
    """Render with the tokenizer's template; an answer is what the template adds for it, up to the end token."""
    turns = [{"role": turn.role, "content": one_text(turn, "chat")} for turn in messages]
    segments: list[Segment] = []
    done = ""
    for index, turn in enumerate(messages):
        if not turn.trained:
            continue
        prompt = tokenizer.chat(turns[:index], open_answer=True)
        answer = tokenizer.chat(turns[: index + 1], open_answer=False)
        if not (prompt.startswith(done) and answer.startswith(prompt)):
            raise TrainingError(
                f"The model's chat template rewrites earlier turns, so answer {index} of a sample can't be told "
                "from its prompt. Keep one answer a sample, or choose another hone.data.prompt_template.",
                code="template_not_prefix_stable",
                param="hone.data.prompt_template",
            )
        segments.append(Segment(prompt[len(done) :], trained=False))
        segments.append(Segment(_up_to_end(answer[len(prompt) :], tokenizer), trained=True))
        done = prompt + segments[-1].text
    if open_answer:
        segments.append(Segment(tokenizer.chat(turns, open_answer=True)[len(done) :], trained=False))
    return segments


def _up_to_end(answer: str, tokenizer: PromptTokenizer) -> str:
    """Cut what the template writes after the end token (often a newline): generation stops before it."""
    end = answer.rfind(tokenizer.eos_token)
    return answer if end < 0 else answer[: end + len(tokenizer.eos_token)]


# --- Templates of our own --------------------------------------------------------------------------------------------


def _llama2(messages: tuple[Message, ...], *, open_answer: bool) -> list[Segment]:
    """Llama-2's: ``[INST] <<SYS>> system <</SYS>> question [/INST] answer``; the tokenizer's tokens stand around it."""
    system, turns = _split_system(messages)
    segments = []
    for index, turn in enumerate(turns):
        if turn.role == "assistant":
            segments.append(Segment(f" {turn.content}", trained=turn.trained))
            continue
        question = one_text(turn, "llama2")
        if index == 0 and system:
            question = f"<<SYS>>\n{system}\n<</SYS>>\n\n{question}"
        segments.append(Segment(f"[INST] {question} [/INST]", trained=False))
    return segments


def _alpaca(messages: tuple[Message, ...], *, open_answer: bool) -> list[Segment]:
    """Alpaca's headings: ``### Instruction``, ``### Input`` where there is one, ``### Response``."""
    system, turns = _split_system(messages)
    lead = system or "Below is an instruction that describes a task. Write a response that completes the request."
    segments = []
    for index, turn in enumerate(turns):
        if turn.role == "assistant":
            segments.append(Segment(turn.content, trained=turn.trained))
            continue
        opening = f"{lead}\n\n" if index == 0 else "\n\n"
        question = one_text(turn, "alpaca")
        segments.append(Segment(f"{opening}### Instruction:\n{question}\n\n### Response:\n", trained=False))
    return segments


def _none(messages: tuple[Message, ...], *, open_answer: bool) -> list[Segment]:
    """Nothing around the texts: prompt, then completion."""
    return [Segment(one_text(turn, "none"), trained=turn.trained) for turn in messages]


_TEMPLATES: dict[str, _Renderer] = {"llama2": _llama2, "alpaca": _alpaca, "none": _none}


def _split_system(messages: tuple[Message, ...]) -> tuple[str, tuple[Message, ...]]:
    system = "\n\n".join(turn.content for turn in messages if turn.role == "system")
    return system, tuple(turn for turn in messages if turn.role != "system")
