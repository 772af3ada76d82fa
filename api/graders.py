"""/v1/fine_tuning/alpha/graders: look at a grader, and try it on one text."""

import time

from fastapi import APIRouter

from api.deps import CurrentProject
from api.grader_schemas import (
    GraderMetadata,
    GraderRunRequest,
    GraderRunResponse,
    Known,
    TextSimilarityGrader,
    ValidateRequest,
    ValidateResponse,
)
from api.json_body import StrictJsonRoute
from core.errors import DatasetError, InvalidRequestError
from core.graders import check_string, similarity, too_long
from core.specs import StringCheckCriterion
from core.templates import render

router = APIRouter(prefix="/v1/fine_tuning/alpha/graders", tags=["fine-tuning"], route_class=StrictJsonRoute)


@router.post("/validate")
def validate_grader(body: ValidateRequest, project_id: CurrentProject) -> ValidateResponse:
    """The grader, if an eval could use it."""
    return ValidateResponse(grader=body.grader)


@router.post("/run")
def run_grader(body: GraderRunRequest, project_id: CurrentProject) -> GraderRunResponse:
    """The reward of one text. A fault of the grader or its item is a 400, never a reward of 0."""
    began = time.perf_counter()
    reward = _reward(body.grader, body)
    metadata = GraderMetadata(
        name=body.grader.name,
        type=body.grader.type,
        execution_time=time.perf_counter() - began,
        scores={body.grader.name: reward},
    )
    return GraderRunResponse(reward=reward, metadata=metadata)


def _reward(grader: Known, body: GraderRunRequest) -> float:
    if not isinstance(grader, StringCheckCriterion | TextSimilarityGrader):
        raise InvalidRequestError(
            "'grader.type': 'code_bleu' parses code, which workers do and the API does not. Use it in an eval, "
            "or POST …/graders/validate to check it.",
            param="grader.type",
            code="unsupported",
        )
    values = {"item": body.item, "sample": {"output_text": body.model_sample}}
    try:
        text, reference = (render(template, values, where="'item'") for template in (grader.input, grader.reference))
    except DatasetError as error:
        raise InvalidRequestError(error.message, param="item", code="missing_field") from None
    if (reason := too_long(text, reference)) is not None:
        raise InvalidRequestError(f"The texts can't be compared: {reason}.", param="grader", code="too_long")
    if isinstance(grader, StringCheckCriterion):
        return float(check_string(grader.operation, text, reference))
    return similarity(grader.evaluation_metric, text, reference)
