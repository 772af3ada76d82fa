"""A new job: a form made from the specs themselves, the estimate beside it, and refusals at their field."""

import re
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from sqlalchemy.orm import Session

from api import estimates, jobs
from api.dashboard.forms import Refusal, as_refusal, checked, offered_files, parsed, require_storable, typed
from api.dashboard.page import PageRoute, ViewerDep, go_to, page
from api.dashboard.settings_table import label_of, title_of
from api.deps import Parts, PartsDep, ReadSession
from api.job_schemas import FineTuneRequest, FineTuningJob
from core.errors import HoneError
from core.specs import DpoSpec, FineTuneSpec, HoneSpec, Hyperparameters
from models import lifecycle
from models.status import JobKind

router = APIRouter(route_class=PageRoute)

#: What is open from the start; the rest is one click away, because its defaults are good.
_FIRST = ("hyperparameters", "lora")


@dataclass(frozen=True)
class Input:
    """One setting in the form. ``choices``: None for a text field."""

    name: str
    label: str
    hint: str
    default: str
    value: str
    choices: list[str] | None
    numeric: bool


@dataclass(frozen=True)
class Section:
    """Settings under one heading."""

    title: str
    inputs: list[Input]
    open: bool


@dataclass(frozen=True)
class MemoryPart:
    """A part of the memory at its peak, as a stretch of a bar."""

    title: str
    bytes: int
    start: float
    width: float
    colour: int


def _text(value: Any) -> str:
    """A setting's value as a field holds it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _alternatives(annotation: Any) -> list[Any]:
    """The members of a union, without what ``Annotated`` says of them."""
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [inner for member in get_args(annotation) for inner in _alternatives(member)]
    return [annotation]


def _input(prefix: str, name: str, field: FieldInfo, value: Any) -> Input:
    members = _alternatives(field.annotation)
    words: list[str] = []
    for member in members:
        if get_origin(member) is Literal:
            words += [str(word) for word in get_args(member)]
        elif member is bool:
            words += ["true", "false"]
    numeric = any(member in (int, float) for member in members)
    free = numeric or str in members or any(get_origin(member) is tuple for member in members)
    return Input(
        name=f"{prefix}.{name}",
        label=label_of(name),
        hint=field.description or "",
        default=_text(field.default),
        value=_text(value),
        choices=None if free else words,
        numeric=numeric,
    )


def sections(values: Mapping[str, str]) -> list[Section]:
    """The form's settings, with what was typed before; an empty one means the default."""
    made = [_section("hyperparameters", "hyperparameters", Hyperparameters, values)]
    made.append(_section("dpo", "dpo", DpoSpec, values))
    for name, field in HoneSpec.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            made.append(_section(name, f"hone.{name}", field.annotation, values))
    return made


def _section(key: str, prefix: str, model: type[BaseModel], values: Mapping[str, str]) -> Section:
    inputs = [
        _input(prefix, name, field, values.get(f"{prefix}.{name}", "")) for name, field in model.model_fields.items()
    ]
    return Section(title_of(key), inputs, key in _FIRST or any(entry.value for entry in inputs))


# --- From the form to a request --------------------------------------------------------------------------------------


def body_of(form: Mapping[str, str]) -> dict[str, Any]:
    """The body of ``POST /v1/fine_tuning/jobs`` that a form asks for; what was left empty is left out."""
    body: dict[str, Any] = {}
    for name in ("model", "training_file", "validation_file", "suffix"):
        if value := form.get(name, "").strip():
            body[name] = value
    kind = form.get("method", "").strip() or "supervised"
    if kind != "supervised":
        body["method"] = {"type": kind, kind: {"hyperparameters": {}}}
    if seed := form.get("seed", "").strip():
        body["seed"] = parsed(seed)
    for name, raw in form.items():
        text = raw.strip()
        if not text or "." not in name:
            continue
        first, *rest = name.split(".")
        if first == "hyperparameters" or (first == "dpo" and kind == "dpo"):
            method = body.setdefault("method", {"type": kind, kind: {"hyperparameters": {}}})
            method[kind]["hyperparameters"][rest[-1]] = parsed(text)
        elif first == "hone" and len(rest) == 2:
            # A prompt is text whatever it looks like.
            value = text if rest[1] == "system_prompt" else parsed(text)
            body.setdefault("hone", {}).setdefault(rest[0], {})[rest[1]] = value
    return body


def read_body(body: dict[str, Any]) -> FineTuneRequest:
    """The request, checked as the API checks it. Raises RequestValidationError and InvalidRequestError."""
    require_storable(body)
    return checked(FineTuneRequest, body)


def refusal_of(error: HoneError | RequestValidationError) -> Refusal:
    """An error in words, at its field of the form."""
    return as_refusal(error, _field)


def _field(param: str | None) -> str | None:
    """A field of the request by its name in the form."""
    if param is None or not (found := re.fullmatch(r"method\.\w+\.hyperparameters\.(\w+)", param)):
        return param
    return f"{'dpo' if found[1] in DpoSpec.model_fields else 'hyperparameters'}.{found[1]}"


def values_of(spec: FineTuneSpec) -> dict[str, str]:
    """A job's spec as a form's fields, what is by default left empty: to run again with changes."""
    values = {
        "model": spec.model,
        "training_file": spec.training_file,
        "validation_file": spec.validation_file or "",
        "suffix": spec.suffix or "",
        "seed": str(spec.seed),
    }
    parts: dict[str, BaseModel] = {"hyperparameters": spec.hyperparameters}
    if spec.dpo is not None:
        values["method"] = "dpo"
        parts["dpo"] = spec.dpo
    for name in HoneSpec.model_fields:
        part = getattr(spec.hone, name)
        if isinstance(part, BaseModel):
            parts[f"hone.{name}"] = part
    for prefix, part in parts.items():
        for name, field in type(part).model_fields.items():
            if (value := getattr(part, name)) != field.default:
                values[f"{prefix}.{name}"] = _text(value)
    return values


# --- Pages -----------------------------------------------------------------------------------------------------------


def _form_page(
    request: Request,
    session: Session,
    viewer: ViewerDep,
    parts: Parts,
    values: Mapping[str, str],
    refused: Refusal | None = None,
    copied: str | None = None,
) -> Response:
    return page(
        request,
        "job_form.html",
        400 if refused else 200,
        values=values,
        sections=sections(values),
        datasets=offered_files(session, viewer.project_id, "fine-tune"),
        catalogue=sorted(parts.catalogue.items()),
        refusal=refused,
        copied=copied,
    )


@router.get("/jobs/new")
def new_job_page(
    request: Request,
    viewer: ViewerDep,
    parts: PartsDep,
    session: ReadSession,
    copy_of: Annotated[str | None, Query(alias="from", max_length=64)] = None,
    file: Annotated[str | None, Query(max_length=64)] = None,
) -> Response:
    """The form: empty, with a dataset, or filled in with another job's settings."""
    values: dict[str, str] = {"training_file": file} if file else {}
    if copy_of is not None:
        job = lifecycle.get_job(session, viewer.project_id, copy_of, JobKind.FINE_TUNE)
        values = values_of(FineTuneSpec.model_validate(job.spec))
    return _form_page(request, session, viewer, parts, values, copied=copy_of)


@router.post("/jobs/new/estimate")
async def estimate(request: Request, viewer: ViewerDep, parts: PartsDep) -> Response:
    """What the job of a form would take."""
    values = await typed(request)
    return await run_in_threadpool(_estimate, request, viewer, parts, values)


def _estimate(request: Request, viewer: ViewerDep, parts: Parts, values: dict[str, str]) -> Response:
    try:
        found = estimates.estimate_job(read_body(body_of(values)), viewer.project_id, parts)
    except (HoneError, RequestValidationError) as error:
        return page(request, "estimate.html", refusal=refusal_of(error))
    return page(request, "estimate.html", refusal=None, found=found, memory=memory_parts(found.memory))


def memory_parts(memory: Mapping[str, Any] | None) -> list[MemoryPart]:
    """The parts of the peak as stretches of one bar, in percent of it."""
    made: list[MemoryPart] = []
    start = 0.0
    parts = memory["parts"] if memory else []
    whole = sum(part["bytes"] for part in parts) or 1
    for colour, part in enumerate(parts, start=1):
        width = 100 * part["bytes"] / whole
        made.append(MemoryPart(part["title"], part["bytes"], start, width, min(colour, 8)))
        start += width
    return made


@router.post("/jobs")
async def create(request: Request, viewer: ViewerDep, parts: PartsDep) -> Response:
    """Submit the form."""
    values = await typed(request)
    return await run_in_threadpool(_create, request, viewer, parts, values)


def _create(request: Request, viewer: ViewerDep, parts: Parts, values: dict[str, str]) -> Response:
    try:
        job = _submit(viewer, parts, values)
    except (HoneError, RequestValidationError) as error:
        with parts.database.read() as session:
            return _form_page(request, session, viewer, parts, values, refusal_of(error))
    return go_to(f"/jobs/{job.id}")


def _submit(viewer: ViewerDep, parts: Parts, values: dict[str, str]) -> FineTuningJob:
    body = read_body(body_of(values))
    with parts.database.write() as session:
        return jobs.create_job(body, viewer.project_id, session, parts)
