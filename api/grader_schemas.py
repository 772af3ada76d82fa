"""What graders look like on the wire: those that compare two texts can be run by themselves."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field

from api.eval_schemas import WireMetric, known_criterion
from core.specs import CodeBleuCriterion, Spec, StringCheckCriterion
from core.templates import normalize


class TextSimilarityGrader(Spec):
    """OpenAI's ``text_similarity`` as a grader: a criterion of an eval has a threshold besides."""

    type: Literal["text_similarity"]
    name: str = Field(min_length=1, max_length=256)
    input: str
    reference: str
    evaluation_metric: WireMetric


Known = StringCheckCriterion | TextSimilarityGrader | CodeBleuCriterion


def _templates_of(grader: Known) -> Known:
    texts = {name: normalize(getattr(grader, name), sample=True) for name in ("input", "reference")}
    return grader.model_copy(update=texts)


Grader = Annotated[
    Annotated[Known, Field(discriminator="type")], known_criterion("grader"), AfterValidator(_templates_of)
]


class ValidateRequest(Spec):
    """The body of POST …/graders/validate."""

    grader: Grader


class ValidateResponse(BaseModel):
    """The grader as it was understood."""

    grader: Known


class GraderRunRequest(Spec):
    """The body of POST …/graders/run. ``item`` is what {{item.…}} names, ``model_sample`` {{sample.output_text}}."""

    grader: Grader
    model_sample: str
    item: dict[str, Any] = Field(default_factory=dict)


class GraderErrors(BaseModel):
    """OpenAI's list of what may go wrong; here a request that can't be graded is a 400 instead, so all are false."""

    formula_parse_error: Literal[False] = False
    invalid_variable_error: Literal[False] = False
    model_grader_parse_error: Literal[False] = False
    model_grader_refusal_error: Literal[False] = False
    model_grader_server_error: Literal[False] = False
    model_grader_server_error_details: None = None
    other_error: Literal[False] = False
    python_grader_runtime_error: Literal[False] = False
    python_grader_runtime_error_details: None = None
    python_grader_server_error: Literal[False] = False
    python_grader_server_error_type: None = None
    sample_parse_error: Literal[False] = False
    truncated_observation_error: Literal[False] = False
    unresponsive_reward_error: Literal[False] = False


class GraderMetadata(BaseModel):
    """What ran, for how many seconds, and what came out."""

    name: str
    type: str
    errors: GraderErrors = GraderErrors()
    execution_time: float
    scores: dict[str, float]
    token_usage: None = None
    sampled_model_name: None = None


class GraderRunResponse(BaseModel):
    """A grader's reward, from 0 to 1."""

    reward: float
    metadata: GraderMetadata
    sub_rewards: dict[str, float] = Field(default_factory=dict)
    model_grader_token_usage_per_model: dict[str, int] = Field(default_factory=dict)
