"""A new evaluation: a form for the model, the questions and the judge, and refusals at their field."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Annotated, Any, TypeVar, get_args

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from api import eval_runs
from api.dashboard.eval_items import MOST, Questions, Wanted, questions_of
from api.dashboard.forms import OFFERED, Refusal, as_refusal, checked, offered_files, parsed, require_storable, typed
from api.dashboard.page import PageRoute, ViewerDep, go_to, page
from api.deps import Parts, PartsDep, ReadSession
from api.eval_schemas import EvalRequest
from api.evals import get_eval
from api.file_access import get_file
from api.run_request import RunRequest, TemplateTurn
from core.errors import HoneError, InvalidRequestError, NotFoundError
from core.specs import (
    EvaluationSpec,
    FineTuneSpec,
    Language,
    PromptTemplate,
    SamplingSpec,
    SimilarityMetric,
    TemplateMessage,
)
from core.templates import normalize
from models import lifecycle
from models.access import find_model, may_use
from models.status import JobKind
from models.tables import Eval, EvalRun, File, FineTunedModel, Job

router = APIRouter(route_class=PageRoute)

Found = TypeVar("Found")

#: What an empty form starts with.
DEFAULTS = {"compare_base": "true", "judge": "code_bleu", "lang": "python", "pass_threshold": "0.5"}
#: ``string_check``'s operations in words.
OPERATIONS = {
    "eq": "equals the expected answer",
    "ne": "differs from the expected answer",
    "like": "contains the expected answer",
    "ilike": "contains it, upper or lower case",
}
#: Sampling parameters of a request by the form's names.
_SAMPLING = {"max_completion_tokens": "max_tokens", "temperature": "temperature", "top_p": "top_p", "seed": "seed"}
#: A field of the two requests, by the form's name for it; the first that fits counts.
_FIELDS = (
    (r"data_source\.model", "model"),
    (r"data_source\.source.*", "file"),
    (r"data_source\.sampling_params\.max_completion_tokens", "max_tokens"),
    (r"data_source\.sampling_params\.(\w+)", r"\1"),
    (r"testing_criteria\[0\]\.(lang|pass_threshold)", r"\1"),
    (r"testing_criteria.*", "judge"),
)


# --- From the form to requests ---------------------------------------------------------------------------------------


def field_of(param: str | None, *, system: bool) -> str | None:
    """A field of a request by its name in the form. ``system``: the prompt begins with the form's system message."""
    if param is None:
        return None
    if found := re.match(r"data_source\.input_messages\.template\[(\d+)\]", param):
        return "system" if system and found[1] == "0" else "prompt"
    for pattern, name in _FIELDS:
        if found := re.fullmatch(pattern, param):
            return found.expand(name)
    return param


def definition_of(form: Mapping[str, str], reference: str, name: str) -> dict[str, Any]:
    """The body of ``POST /v1/evals`` that a form asks for."""
    kind, _, how = form.get("judge", "").partition(":")
    criterion: dict[str, Any] = {"type": kind, "input": "{{sample.output_text}}", "reference": reference}
    if kind == "code_bleu":
        criterion |= {"name": "CodeBLEU", "lang": form.get("lang", "")}
    elif kind == "text_similarity":
        criterion |= {"name": how.replace("_", " ") or kind, "evaluation_metric": how}
    else:
        criterion |= {"name": "string check", "operation": how}
    if kind != "string_check":
        criterion["pass_threshold"] = parsed(form.get("pass_threshold", ""))
    return {
        "name": f"{criterion['name']} on {name}"[:256],
        "data_source_config": {
            "type": "custom",
            "item_schema": {"type": "object"},
            "include_sample_schema": True,
        },
        "testing_criteria": [criterion],
    }


def run_of(form: Mapping[str, str], questions: Questions, name: str) -> dict[str, Any]:
    """The body of ``POST /v1/evals/{id}/runs`` that a form asks for; what was left empty is left out."""
    turns = list(questions.turns)
    if form.get("system", "") and turns[0][0] != "system":
        turns.insert(0, ("system", form["system"]))
    asked = {theirs: parsed(form[ours]) for theirs, ours in _SAMPLING.items() if form.get(ours)}
    return {
        "name": form.get("name", "") or f"{short_name(form.get('model', ''))} on {name}"[:256],
        "data_source": {
            "type": "completions",
            "model": form.get("model", ""),
            "source": questions.source.model_dump(),
            "input_messages": {
                "type": "template",
                "template": [{"role": role, "content": content} for role, content in turns],
            },
            "sampling_params": asked,
        },
        "hone": {"compare_base": form.get("compare_base") == "true"},
    }


def short_name(model: str) -> str:
    """What people call a model by: a fine-tune's suffix if it has one, else the base's name."""
    whole, _, step = model.partition(":ckpt-step-")
    named = re.fullmatch(r"ft:(?P<base>.+):[^:]*:(?P<suffix>[^:]*):(?P<id>[^:]+)", whole)
    if named is None:
        return model.rsplit("/", 1)[-1]
    name = named["suffix"] or f"{named['base'].rsplit('/', 1)[-1]} {named['id']}"
    return f"{name} at step {step}" if step else name


def _at_most(text: str) -> int | None:
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:9]) <= MOST:
        raise InvalidRequestError(f"'{text:.20}' is no number of samples from 1 to {MOST:,}.", param="at_most")
    return int(text)


def _reference(text: str) -> str:
    try:
        return normalize(text, sample=False)
    except ValueError as error:
        raise InvalidRequestError(f"'reference': {error}.", param="reference") from None


# --- The page --------------------------------------------------------------------------------------------------------


def _form_page(
    request: Request,
    session: Session,
    viewer: ViewerDep,
    parts: Parts,
    values: Mapping[str, str],
    refused: Refusal | None = None,
    job: Job | None = None,
) -> Response:
    project_id = viewer.project_id
    usable = select(FineTunedModel).where(may_use(project_id, FineTunedModel.id))
    tuned = list(session.scalars(usable.order_by(FineTunedModel.created_at.desc()).limit(OFFERED)))
    bases = sorted(parts.catalogue)
    named = values.get("model", "")
    defined = select(Eval).where(Eval.project_id == project_id).order_by(Eval.id.desc()).limit(OFFERED)
    return page(
        request,
        "eval_form.html",
        400 if refused else 200,
        values=values,
        tuned=tuned,
        bases=bases,
        # A checkpoint, or one of many models: it was named by a link.
        other=named if named and named not in bases and all(named != model.id for model in tuned) else None,
        items=offered_files(session, project_id, "evals"),
        datasets=offered_files(session, project_id, "fine-tune"),
        evals=list(session.scalars(defined)),
        metrics=get_args(SimilarityMetric),
        operations=OPERATIONS,
        languages=get_args(Language),
        sampling=SamplingSpec(),
        refusal=refused,
        job=job,
    )


@router.get("/evals/new")
def new_eval_page(
    request: Request,
    viewer: ViewerDep,
    parts: PartsDep,
    session: ReadSession,
    job: Annotated[str | None, Query(max_length=64)] = None,
    copy_of: Annotated[str | None, Query(alias="from", max_length=64)] = None,
    file: Annotated[str | None, Query(max_length=64)] = None,
) -> Response:
    """The form: empty, with a job's model and validation file, as another run had it, or with a file."""
    values, found = dict(DEFAULTS), None
    if job is not None:
        found = lifecycle.get_job(session, viewer.project_id, job, JobKind.FINE_TUNE)
        values |= values_of_job(found)
    elif copy_of is not None:
        values |= values_of_run(session, viewer.project_id, copy_of)
    if file is not None:
        values["file"] = file
    return _form_page(request, session, viewer, parts, values, job=found)


def values_of_job(job: Job) -> dict[str, str]:
    """What a job says of an evaluation of its model."""
    spec = FineTuneSpec.model_validate(job.spec)
    return {
        "model": job.fine_tuned_model or spec.model,
        "file": spec.validation_file or "",
        "system": spec.hone.data.system_prompt or "",
        "lang": spec.hone.evaluation.codebleu_lang,
    }


def values_of_run(session: Session, project_id: str, run_id: str) -> dict[str, str]:
    """A run as a form's fields, what is by default left empty. Raises NotFoundError."""
    job = lifecycle.get_job(session, project_id, run_id, JobKind.EVALUATION)
    run = session.get_one(EvalRun, job.id)
    spec = EvaluationSpec.model_validate(job.spec)
    texts = {message.role: message.content for message in spec.messages} if _is_simple(spec.messages) else {}
    sampling = {
        name: str(value)
        for name, value in spec.sampling.model_dump().items()
        if value != SamplingSpec.model_fields[name].default
    }
    return {
        "model": spec.model,
        "compare_base": "true" if spec.compare_base else "",
        "file": spec.items_file,
        "system": texts.get("system", ""),
        "prompt": texts.get("user", ""),
        "eval_id": run.eval_id,
        **sampling,
    }


def can_be_repeated(data_source: Mapping[str, Any]) -> bool:
    """Whether the form can hold what a run was asked: a model, by one question with or without a system message."""
    if data_source.get("type") != "completions":
        return False
    return _is_simple([TemplateTurn.model_validate(turn) for turn in data_source["input_messages"]["template"]])


def _is_simple(turns: Sequence[TemplateTurn | TemplateMessage]) -> bool:
    return [turn.role for turn in turns] in (["user"], ["system", "user"])


# --- Submit ----------------------------------------------------------------------------------------------------------


@router.post("/evals")
async def create(request: Request, viewer: ViewerDep, parts: PartsDep) -> Response:
    """Submit the form."""
    values = await typed(request)
    return await run_in_threadpool(_create, request, viewer, parts, values)


def _create(request: Request, viewer: ViewerDep, parts: Parts, values: dict[str, str]) -> Response:
    form = {name: value.strip() for name, value in values.items()}
    try:
        eval_id, run_id = _submit(viewer.project_id, parts, form)
    except (HoneError, RequestValidationError) as error:
        refused = as_refusal(error, lambda param: field_of(param, system=bool(form.get("system"))))
        with parts.database.read() as session:
            return _form_page(request, session, viewer, parts, values, refused)
    return go_to(f"/evals/{eval_id}/runs/{run_id}")


def _submit(project_id: str, parts: Parts, form: Mapping[str, str]) -> tuple[str, str]:
    require_storable(form)
    defined = form.get("eval_id", "")
    reference = None if defined else _reference(form.get("reference", ""))
    wanted = Wanted(_at_most(form.get("at_most", "")), form.get("prompt", ""), reference)
    with parts.database.read() as session:
        file = _file(session, project_id, form.get("file", ""))
        if defined:
            _told_at("eval_id", lambda: get_eval(session, project_id, defined))
        template = _template(session, project_id, form.get("model", ""))
    questions = questions_of(parts, file, wanted, template)
    run = checked(RunRequest, run_of(form, questions, file.filename))
    definition: EvalRequest | str = defined
    if not defined:
        definition = checked(EvalRequest, definition_of(form, questions.reference, file.filename))
    items_name = f"items of {PurePath(file.filename).stem}.jsonl"
    return eval_runs.start_run(definition, run, project_id, parts, items_name=items_name)


def _file(session: Session, project_id: str, file_id: str) -> File:
    if not file_id:
        raise InvalidRequestError("Choose the file whose questions are asked.", param="file", code="missing_field")
    file = _told_at("file", lambda: get_file(session, project_id, file_id))
    if file.purpose not in ("evals", "fine-tune") or file.status != "processed":
        raise InvalidRequestError(
            f"{file.filename} has no questions: its purpose is '{file.purpose}'. Choose a file of the purpose "
            "'evals' or 'fine-tune'.",
            param="file",
            code="wrong_purpose",
        )
    return file


def _told_at(field: str, look_up: Callable[[], Found]) -> Found:
    """What is looked up. Raises InvalidRequestError at the form's field when there is none."""
    try:
        return look_up()
    except NotFoundError as error:
        raise InvalidRequestError(error.message, param=field, code=error.code) from None


def _template(session: Session, project_id: str, model: str) -> PromptTemplate:
    """That of the model's training; a base's own is its chat template, where nothing tells otherwise."""
    tuned = find_model(session, project_id, model)
    template: PromptTemplate = tuned.prompt_template if tuned else "chat"  # type: ignore[assignment]  # a column of text
    return template
