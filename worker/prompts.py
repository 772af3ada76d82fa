"""Prompts with transformers' tokenizer: ``core.prompts`` renders, this brings the tokenizer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from core import prompts
from core.dataset import Message, Sample
from core.prompts import Encoded, Segment
from core.specs import PromptTemplate
from worker import pulse

__all__ = ["Encoded", "Segment", "begin_id", "encode_prompt", "encode_sample", "encode_samples"]


#: Samples, and characters of them, that are tokenized together.
_BATCH_SAMPLES = 512
_BATCH_CHARACTERS = 500_000


def begin_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The beginning token's id, if this tokenizer starts texts with one."""
    begin: int | None = tokenizer.bos_token_id
    return begin if begin is not None and tokenizer.encode("a")[:1] == [begin] else None


@dataclass(frozen=True)
class _Tokenizer:
    """transformers' tokenizer as ``core.prompts`` wants it."""

    inner: PreTrainedTokenizerBase

    @cached_property  # transformers looks each of these up among all its attributes, and here it is one for each text
    def eos_token(self) -> str:
        return str(self.inner.eos_token)

    @cached_property
    def eos_token_id(self) -> int:
        found: int = self.inner.eos_token_id
        return found

    @cached_property
    def bos_token(self) -> str | None:
        found: str | None = self.inner.bos_token
        return found

    @cached_property
    def begin_id(self) -> int | None:
        return begin_id(self.inner)

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """On all cores, without what ``encode`` would find beside the ids; one by one where it is written in Python."""
        if not isinstance(self.inner, PreTrainedTokenizerFast):
            return [self.inner.encode(text, add_special_tokens=False) for text in texts]
        rust = self.inner.backend_tokenizer
        rust.no_padding()  # these three as ``encode`` sets them
        rust.no_truncation()
        rust.encode_special_tokens = self.inner.split_special_tokens
        return [found.ids for found in rust.encode_batch_fast(list(texts), add_special_tokens=False)]

    def chat(self, turns: list[dict[str, str]], *, open_answer: bool) -> str:
        text: Any = self.inner.apply_chat_template(turns, tokenize=False, add_generation_prompt=open_answer)
        return str(text)


def encode_sample(
    sample: Sample, template: PromptTemplate, tokenizer: PreTrainedTokenizerBase, system_prompt: str | None = None
) -> Encoded:
    """A training sample as tokens. Raises TrainingError when the template can't render its turns."""
    return prompts.encode_sample(sample, template, _Tokenizer(tokenizer), system_prompt)


def encode_samples(
    samples: Sequence[Sample],
    template: PromptTemplate,
    tokenizer: PreTrainedTokenizerBase,
    system_prompt: str | None = None,
) -> Iterator[Encoded]:
    """Each sample as ``encode_sample`` has it, some hundred tokenized at once, in their order."""
    wrapped = _Tokenizer(tokenizer)
    for batch in _batches(samples):
        yield from prompts.encode_samples(batch, template, wrapped, system_prompt)
        pulse.beat()


def _batches(samples: Sequence[Sample]) -> Iterator[list[Sample]]:
    batch: list[Sample] = []
    characters = 0
    for sample in samples:
        batch.append(sample)
        characters += sum(len(turn.content) + len(turn.input or "") for turn in sample.messages)
        if len(batch) == _BATCH_SAMPLES or characters > _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    yield batch


def encode_prompt(
    messages: Sequence[Message],
    template: PromptTemplate,
    tokenizer: PreTrainedTokenizerBase,
    system_prompt: str | None = None,
) -> list[int]:
    """The tokens that an answer follows, ending where the assistant's turn begins."""
    return prompts.encode_prompt(messages, template, _Tokenizer(tokenizer), system_prompt)
