"""What evals look like on the wire: an eval's definition and the body that makes one."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from api.pagination import Listed
from api.schemas import Metadata
from core.specs import CodeBleuCriterion, Spec
from core.templates import normalize
from models.tables import Eval


def only_type(supported: str, what: str) -> Callable[[Any], Any]:
    """A validator that refuses an object of another type by its name, before its other fields are looked at."""

    def check(value: Any) -> Any:
        kind = value.get("type") if isinstance(value, dict) else None
        if isinstance(kind, str) and kind != supported:
            raise PydanticCustomError(
                "unsupported",
                "this server does not have the {what} '{kind}'. Use the type '{supported}'",
                {"what": what, "kind": kind[:64], "supported": supported},
            )
        return value

    return check


def _templates_of(criterion: CodeBleuCriterion) -> CodeBleuCriterion:
    texts = {name: normalize(getattr(criterion, name), sample=True) for name in ("input", "reference")}
    return criterion.model_copy(update=texts)


def _distinct_names(criteria: list[CodeBleuCriterion]) -> list[CodeBleuCriterion]:
    if len({criterion.name for criterion in criteria}) < len(criteria):
        raise ValueError("each criterion needs a name of its own: results are told apart by it")
    return criteria


Criterion = Annotated[
    CodeBleuCriterion, BeforeValidator(only_type("code_bleu", "testing criterion")), AfterValidator(_templates_of)
]


class CustomDataSource(Spec):
    """Items are given by each run; ``item_schema`` is a JSON Schema that says what they look like."""

    type: Literal["custom"]
    item_schema: dict[str, Any]
    include_sample_schema: bool = False


class EvalRequest(Spec):
    """The body of POST /v1/evals."""

    name: str | None = Field(None, min_length=1, max_length=256)
    data_source_config: Annotated[CustomDataSource, BeforeValidator(only_type("custom", "data source"))]
    testing_criteria: Annotated[list[Criterion], Field(min_length=1, max_length=16), AfterValidator(_distinct_names)]
    metadata: Metadata | None = None


class EvalUpdate(Spec):
    """The body of POST /v1/evals/{id}; a field that is not given stays as it is."""

    name: str | None = Field(None, min_length=1, max_length=256)
    metadata: Metadata | None = None


class EvalObject(Listed):
    """OpenAI's eval."""

    object: Literal["eval"] = "eval"
    name: str
    created_at: int
    data_source_config: dict[str, Any]
    testing_criteria: list[dict[str, Any]]
    metadata: dict[str, str] | None


class EvalDeleted(BaseModel):
    """What the deletion of an eval answers."""

    object: Literal["eval.deleted"] = "eval.deleted"
    deleted: Literal[True] = True
    eval_id: str


# The names `sample` has in OpenAI's schema of a custom data source.
_SAMPLE_SCHEMA = {
    "type": "object",
    "properties": {"output_text": {"type": "string"}},
    "required": ["output_text"],
}


def data_source_config(source: CustomDataSource) -> dict[str, Any]:
    """The config as OpenAI answers it: one JSON Schema of all that templates can name."""
    properties: dict[str, Any] = {"item": source.item_schema}
    if source.include_sample_schema:
        properties["sample"] = _SAMPLE_SCHEMA
    return {"type": "custom", "schema": {"type": "object", "properties": properties, "required": list(properties)}}


def eval_object(row: Eval) -> EvalObject:
    """An eval's row as it goes onto the wire."""
    return EvalObject(
        id=row.id,
        name=row.name,
        created_at=int(row.created_at),
        data_source_config=row.data_source_config,
        testing_criteria=row.testing_criteria["criteria"],
        metadata=row.labels,
    )
