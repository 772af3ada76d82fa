"""A base model's card: its configuration and its tokenizer as the worker loads it, in one JSON document.

transformers changes some tokenizers while it loads them, so their tokenizer.json is not the truth. ``worker.card``
writes down what came out; with that, the ``tokenizers`` wheel alone gives the worker's very tokens (decision 0028).
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import BaseModel, ConfigDict
from tokenizers import Tokenizer

from core.catalogue import BaseModelEntry
from core.errors import TrainingError
from core.specs import PromptTemplate


class BaseCard(BaseModel):
    """What a preflight and an estimate need to know of a base model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: transformers' configuration, as its dictionary.
    config: dict[str, Any]
    #: The ``tokenizers`` document of the tokenizer as loaded.
    tokenizer: str
    eos_token: str
    eos_token_id: int
    bos_token: str | None
    begin_id: int | None
    #: Named tokens that chat templates may use, such as ``bos_token``.
    special_tokens: dict[str, str]
    chat_template: str | None
    #: Whether a template without tools sees ``tools`` as none; versions of transformers differ, and templates look.
    tools_are_none: bool
    default_template: PromptTemplate
    #: Whether the worker's own blocks cover the model.
    fast_path: bool


def card_key(name: str, entry: BaseModelEntry) -> str:
    """Where the card lies in storage. Another entry under the same name has another card."""
    digest = hashlib.sha256(json.dumps([name, entry.model_dump(mode="json")]).encode()).hexdigest()[:32]
    return f"base-models/{digest}.json"


class CardTokenizer:
    """A card's tokenizer, as ``core.prompts`` wants it; without torch and transformers."""

    def __init__(self, card: BaseCard) -> None:
        self.card = card
        self._tokenizer = Tokenizer.from_str(card.tokenizer)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    @property
    def eos_token(self) -> str:
        """The end-of-sequence token's text."""
        return self.card.eos_token

    @property
    def eos_token_id(self) -> int:
        """Its id."""
        return self.card.eos_token_id

    @property
    def bos_token(self) -> str | None:
        """The beginning token's text."""
        return self.card.bos_token

    @property
    def begin_id(self) -> int | None:
        """The beginning token's id, if texts start with it."""
        return self.card.begin_id

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, with nothing added; on all cores."""
        return [found.ids for found in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def chat(self, turns: list[dict[str, str]], *, open_answer: bool) -> str:
        """The turns in the model's own chat template. Raises TrainingError when it refuses them."""
        if self._chat is None:
            raise TrainingError(
                "The base model has no chat template. Choose another hone.data.prompt_template.",
                code="template_unusable",
                param="hone.data.prompt_template",
            )
        try:
            return self._chat.render(
                messages=turns,
                tools=None if self.card.tools_are_none else [],
                documents=None,
                add_generation_prompt=open_answer,
                **self.card.special_tokens,
            )
        except jinja2.TemplateError as error:
            raise TrainingError(
                f"The model's chat template refuses a sample: {error}", code="template_unusable"
            ) from error

    @cached_property
    def _chat(self) -> jinja2.Template | None:
        return None if self.card.chat_template is None else _environment().from_string(self.card.chat_template)

    def texts(self, ids: Sequence[int]) -> list[str]:
        """What each token adds to the text: bytes that are no whole character come with the token that ends it."""
        decode: Callable[..., str] = self._tokenizer.decode
        added: list[str] = []
        begin = shown = 0  # tokens before `begin` are settled; `shown` characters of what follows them are told
        for end in range(1, len(ids) + 1):
            text = decode(list(ids[begin:end]), skip_special_tokens=False)
            if text.endswith("\N{REPLACEMENT CHARACTER}") and end - begin < _LONGEST_CHARACTER and end < len(ids):
                added.append("")
                continue
            added.append(text[shown:])
            # One token is kept as context: some decoders write a word's blank only behind another word.
            begin, shown = end - 1, len(decode(list(ids[end - 1 : end]), skip_special_tokens=False))
        return added


#: Tokens that one character may be spread over, and one of context.
_LONGEST_CHARACTER = 8


class _Generation(Extension):
    """The tag ``{% generation %}`` around answers: only their text is of interest here."""

    tags = {"generation"}  # noqa: RUF012 - jinja's own declaration

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The tag's body in its place."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _NewDict:
    """``dict`` for templates, without the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


def _environment() -> ImmutableSandboxedEnvironment:
    """What transformers gives a chat template: a sandbox, blocks trimmed, and some functions."""
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    made.filters["tojson"] = _tojson
    made.globals.update(raise_exception=_refuse, strftime_now=_now, dict=_NewDict())
    return made


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(format: str) -> str:
    return datetime.now(UTC).astimezone().strftime(format)
