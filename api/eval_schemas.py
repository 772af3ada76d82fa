"""What evals look like on the wire: an eval's definition and the body that makes one."""

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from api.pagination import Listed
from api.schemas import Metadata
from core.specs import CodeBleuCriterion, SimilarityMetric, Spec, StringCheckCriterion, TextSimilarityCriterion
from core.templates import normalize
from models.tables import Eval


def only_types(supported: Iterable[str], what: str, reasons: Mapping[str, str] = {}) -> Callable[[Any], Any]:
    """A validator that refuses an object of another type by its name, before its other fields are looked at.

    ``reasons`` say, by type, why a type of OpenAI's is not there.
    """
    names = " or ".join(f"'{name}'" for name in supported)

    def check(value: Any) -> Any:
        kind = value.get("type") if isinstance(value, dict) else None
        if isinstance(kind, str) and kind not in supported:
            raise PydanticCustomError(
                "unsupported",
                "this server does not have the {what} '{kind}'{reason}. Use the type {supported}",
                {"what": what, "kind": kind[:64], "reason": reasons.get(kind, ""), "supported": names},
            )
        return value

    return check


_CRITERIA = ("code_bleu", "string_check", "text_similarity")
_NO_JUDGE = ": it has no model that judges answers"
_NOT_CRITERIA = {
    "python": ": it runs no code that requests bring",
    "score_model": _NO_JUDGE,
    "label_model": _NO_JUDGE,
    "multi": ": give its graders as criteria of their own, each is reported by its name",
}
#: What OpenAI's text_similarity has beyond ours.
_NOT_METRICS = {
    "cosine": "it compares embeddings, and this server has no model that makes them",
    "meteor": "it needs WordNet's synonyms, which this server does not have",
}


def _known_metric(value: Any) -> Any:
    if isinstance(value, str) and value in _NOT_METRICS:
        raise PydanticCustomError(
            "unsupported",
            "this server does not have the metric '{metric}': {reason}. Use one of {supported}",
            {"metric": value, "reason": _NOT_METRICS[value], "supported": ", ".join(get_args(SimilarityMetric))},
        )
    return value


WireMetric = Annotated[SimilarityMetric, BeforeValidator(_known_metric)]


class _TextSimilarity(TextSimilarityCriterion):
    evaluation_metric: WireMetric


_Criterion = CodeBleuCriterion | StringCheckCriterion | _TextSimilarity


def _templates_of(criterion: _Criterion) -> _Criterion:
    texts = {name: normalize(getattr(criterion, name), sample=True) for name in ("input", "reference")}
    return criterion.model_copy(update=texts)


def _distinct_names(criteria: list[_Criterion]) -> list[_Criterion]:
    if len({criterion.name for criterion in criteria}) < len(criteria):
        raise ValueError("each criterion needs a name of its own: results are told apart by it")
    return criteria


def known_criterion(what: str) -> BeforeValidator:
    """Refuses the kinds that Hone does not have, each with its reason."""
    return BeforeValidator(only_types(_CRITERIA, what, _NOT_CRITERIA))


WireCriterion = Annotated[
    Annotated[_Criterion, Field(discriminator="type")],
    known_criterion("testing criterion"),
    AfterValidator(_templates_of),
]


class CustomDataSource(Spec):
    """Items are given by each run; ``item_schema`` is a JSON Schema that says what they look like."""

    type: Literal["custom"]
    item_schema: dict[str, Any]
    include_sample_schema: bool = False


class EvalRequest(Spec):
    """The body of POST /v1/evals."""

    name: str | None = Field(None, min_length=1, max_length=256)
    data_source_config: Annotated[CustomDataSource, BeforeValidator(only_types(("custom",), "data source"))]
    testing_criteria: Annotated[
        list[WireCriterion], Field(min_length=1, max_length=16), AfterValidator(_distinct_names)
    ]
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
