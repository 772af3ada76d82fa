"""The body of POST /v1/evals/{id}/runs."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from api.eval_schemas import only_types
from api.schemas import Metadata
from core.specs import SamplingSpec, Spec, TemplateMessage
from core.templates import normalize


def _message_text(content: Any) -> Any:
    """OpenAI's forms of a content, as one text: a string, a text part, or a list of these."""
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if _is_text(part) else part for part in parts]
    if not parts or not all(isinstance(text, str) for text in texts):
        raise PydanticCustomError(
            "unsupported",
            "a content is a text, {form}, or a list of these; this server has no images, no audio and no prompt cache",
            {"form": '{"type": "input_text", "text": …}'},
        )
    return normalize("".join(texts), sample=False)


def _is_text(part: Any) -> bool:
    return (
        isinstance(part, dict) and part.get("type") in ("input_text", "output_text") and set(part) == {"type", "text"}
    )


class TemplateTurn(Spec):
    """One message of the prompt; its content may use {{item.<name>}}."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_message_text)]

    def to_spec(self) -> TemplateMessage:
        """The message as a worker reads it."""
        return TemplateMessage(role=self.role, content=self.content)


class InputMessages(Spec):
    """The prompt's messages."""

    type: Literal["template"]
    template: list[TemplateTurn] = Field(min_length=1, max_length=64)


class TextFormat(Spec):
    """OpenAI's default form of an answer."""

    type: Literal["text"]


_NO_SCHEMA = ": it does not bind answers to a grammar"


class SamplingParams(Spec):
    """OpenAI's sampling parameters; ``max_tokens`` is the older name of ``max_completion_tokens``."""

    max_completion_tokens: int | None = Field(None, ge=1, le=8192)
    max_tokens: int | None = Field(None, ge=1, le=8192)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=0, le=2_147_483_647)
    response_format: Annotated[
        TextFormat | None,
        BeforeValidator(
            only_types(("text",), "response format", {"json_object": _NO_SCHEMA, "json_schema": _NO_SCHEMA})
        ),
    ] = None

    @model_validator(mode="after")
    def _one_length(self) -> "SamplingParams":
        if None not in (self.max_completion_tokens, self.max_tokens) and self.max_completion_tokens != self.max_tokens:
            raise ValueError("'max_tokens' and 'max_completion_tokens' differ; give one of them")
        return self

    def to_spec(self) -> SamplingSpec:
        """The parameters with Hone's defaults for what was not given."""
        given = self.model_dump(exclude_none=True, exclude={"response_format"})
        if (length := given.pop("max_completion_tokens", None)) is not None:
            given["max_tokens"] = length
        return SamplingSpec(**given)


class FileSource(Spec):
    """Items in an uploaded file of the purpose "evals"."""

    type: Literal["file_id"]
    id: str = Field(max_length=64)


class InlineItem(Spec):
    """One item, and the answer that it brings if it does: ``{"output_text": …}``."""

    item: dict[str, Any]
    sample: dict[str, Any] | None = None


class InlineSource(Spec):
    """Items in the request itself."""

    type: Literal["file_content"]
    content: list[InlineItem] = Field(min_length=1)


Source = Annotated[
    Annotated[FileSource | InlineSource, Field(discriminator="type")],
    BeforeValidator(
        only_types(
            ("file_id", "file_content"), "source of items", {"stored_completions": ": it serves no chats to store"}
        )
    ),
]


class CompletionsSource(Spec):
    """Prompt the model once an item."""

    type: Literal["completions"]
    model: str = Field(max_length=256)
    input_messages: Annotated[InputMessages, BeforeValidator(only_types(("template",), "kind of input messages"))]
    sampling_params: SamplingParams | None = None
    source: Source


class JsonlSource(Spec):
    """Judge what the items hold; no model is asked."""

    type: Literal["jsonl"]
    source: Source


class HoneRun(Spec):
    """Ours: whether the base of a fine-tuned model answers as well, and whether answers end behind their code block."""

    compare_base: bool = True
    stop_at_fence: bool = True


_REASONS = {"responses": ": it has no responses API"}
DataSource = Annotated[
    Annotated[CompletionsSource | JsonlSource, Field(discriminator="type")],
    BeforeValidator(only_types(("completions", "jsonl"), "data source", _REASONS)),
]


class RunRequest(Spec):
    """The body of POST /v1/evals/{id}/runs."""

    name: str | None = Field(None, min_length=1, max_length=256)
    data_source: DataSource
    metadata: Metadata | None = None
    hone: HoneRun | None = None

    @model_validator(mode="after")
    def _hone_is_for_models(self) -> "RunRequest":
        if self.hone is not None and isinstance(self.data_source, JsonlSource):
            raise ValueError("'hone' says how models are asked, and a jsonl run asks none; leave it out")
        return self
