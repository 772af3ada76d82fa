"""Prompts with transformers' tokenizer: ``core.prompts`` renders, this brings the tokenizer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from core import prompts
from core.dataset import Message, Sample
from core.prompts import Encoded, Segment
from core.specs import PromptTemplate

__all__ = ["Encoded", "Segment", "begin_id", "encode_prompt", "encode_sample"]


def begin_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The beginning token's id, if this tokenizer starts texts with one."""
    begin: int | None = tokenizer.bos_token_id
    return begin if begin is not None and tokenizer.encode("a")[:1] == [begin] else None


@dataclass(frozen=True)
class _Tokenizer:
    """transformers' tokenizer as ``core.prompts`` wants it."""

    inner: PreTrainedTokenizerBase

    @property
    def eos_token(self) -> str:
        return str(self.inner.eos_token)

    @property
    def eos_token_id(self) -> int:
        found: int = self.inner.eos_token_id
        return found

    @property
    def bos_token(self) -> str | None:
        found: str | None = self.inner.bos_token
        return found

    @property
    def begin_id(self) -> int | None:
        return begin_id(self.inner)

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.inner.encode(text, add_special_tokens=False) for text in texts]

    def chat(self, turns: list[dict[str, str]], *, open_answer: bool) -> str:
        text: Any = self.inner.apply_chat_template(turns, tokenize=False, add_generation_prompt=open_answer)
        return str(text)


def encode_sample(
    sample: Sample, template: PromptTemplate, tokenizer: PreTrainedTokenizerBase, system_prompt: str | None = None
) -> Encoded:
    """A training sample as tokens. Raises TrainingError when the template can't render its turns."""
    return prompts.encode_sample(sample, template, _Tokenizer(tokenizer), system_prompt)


def encode_prompt(
    messages: Sequence[Message],
    template: PromptTemplate,
    tokenizer: PreTrainedTokenizerBase,
    system_prompt: str | None = None,
) -> list[int]:
    """The tokens that an answer follows, ending where the assistant's turn begins."""
    return prompts.encode_prompt(messages, template, _Tokenizer(tokenizer), system_prompt)
