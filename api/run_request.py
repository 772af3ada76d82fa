"""The body of POST /v1/evals/{id}/runs."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from api.eval_schemas import only_type
from api.schemas import Metadata
from core.specs import SamplingSpec, Spec, TemplateMessage
from core.templates import normalize


class InputText(Spec):
    """OpenAI's text part."""

    type: Literal["input_text"]
    text: str


def _message_template(content: str | InputText) -> str:
    return normalize(content if isinstance(content, str) else content.text, sample=False)


class TemplateTurn(Spec):
    """One message of the prompt; its content may use {{item.<name>}}."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str | InputText, AfterValidator(_message_template)]

    def to_spec(self) -> TemplateMessage:
        """The message as a worker reads it."""
        assert isinstance(self.content, str)
        return TemplateMessage(role=self.role, content=self.content)


class InputMessages(Spec):
    """The prompt's messages."""

    type: Literal["template"]
    template: list[TemplateTurn] = Field(min_length=1, max_length=64)


class SamplingParams(Spec):
    """OpenAI's sampling parameters; ``max_tokens`` is the older name of ``max_completion_tokens``."""

    max_completion_tokens: int | None = Field(None, ge=1, le=8192)
    max_tokens: int | None = Field(None, ge=1, le=8192)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=0, le=2_147_483_647)

    @model_validator(mode="after")
    def _one_length(self) -> "SamplingParams":
        if None not in (self.max_completion_tokens, self.max_tokens) and self.max_completion_tokens != self.max_tokens:
            raise ValueError("'max_tokens' and 'max_completion_tokens' differ; give one of them")
        return self

    def to_spec(self) -> SamplingSpec:
        """The parameters with Hone's defaults for what was not given."""
        given = self.model_dump(exclude_none=True)
        if (length := given.pop("max_completion_tokens", None)) is not None:
            given["max_tokens"] = length
        return SamplingSpec(**given)


class FileSource(Spec):
    """Items in an uploaded file of the purpose "evals"."""

    type: Literal["file_id"]
    id: str = Field(max_length=64)


class InlineItem(Spec):
    """One item."""

    item: dict[str, Any]


class InlineSource(Spec):
    """Items in the request itself."""

    type: Literal["file_content"]
    content: list[InlineItem] = Field(min_length=1)


class CompletionsSource(Spec):
    """Prompt the model once an item."""

    type: Literal["completions"]
    model: str = Field(max_length=256)
    input_messages: Annotated[InputMessages, BeforeValidator(only_type("template", "kind of input messages"))]
    sampling_params: SamplingParams | None = None
    source: Annotated[FileSource | InlineSource, Field(discriminator="type")]


class HoneRun(Spec):
    """Ours: whether the base of a fine-tuned model answers as well, to compare."""

    compare_base: bool = True


class RunRequest(Spec):
    """The body of POST /v1/evals/{id}/runs."""

    name: str | None = Field(None, min_length=1, max_length=256)
    data_source: Annotated[CompletionsSource, BeforeValidator(only_type("completions", "data source"))]
    metadata: Metadata | None = None
    hone: HoneRun | None = None
