"""/v1/files/{id}/preflight: what is in a dataset, before anything is trained on it."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel
from sqlalchemy import select

from api.base_cards import BaseCards
from api.deps import CurrentProject, Parts, PartsDep, ReadSession
from api.file_access import get_file
from api.json_body import StrictJsonRoute
from api.once import as_json
from api.preflight_runs import Asked
from core.base_card import CardTokenizer
from core.dataset import DatasetReport, Sample, numbered_samples
from core.errors import InvalidRequestError, NotFoundError
from core.preflight_report import make_report
from core.prompts import Encoded, encode_sample
from core.specs import Auto, PromptTemplate
from models.base import db_now
from models.tables import File, Preflight

router = APIRouter(prefix="/v1/files", tags=["files"], route_class=StrictJsonRoute)

#: Tokens of one sample that are listed.
_SHOWN_TOKENS = 4096

ModelQuery = Annotated[str | None, Query(max_length=256, description="Base model; without, characters are counted.")]
TemplateQuery = Annotated[
    Literal["auto", "chat", "llama2", "alpaca", "none"], Query(description="As hone.data.prompt_template.")
]
LengthQuery = Annotated[str, Query(pattern=r"^(auto|[0-9]{1,6})$", description="As hone.data.max_seq_length.")]
SystemQuery = Annotated[str | None, Query(max_length=8192, description="As hone.data.system_prompt.")]
FileQuery = Annotated[str | None, Query(max_length=64, description="Look for samples of this file as well.")]


class PreflightProgress(BaseModel):
    """How far the pass is."""

    bytes: int
    total_bytes: int
    samples: int
    seconds_left: float | None


class PreflightError(BaseModel):
    """Why there is no report."""

    code: Literal["preflight_failed"] = "preflight_failed"
    message: str


class PreflightObject(BaseModel):
    """A preflight; ``report`` is there once it is completed."""

    object: Literal["file.preflight"] = "file.preflight"
    file_id: str
    status: str
    model: str | None
    template: str | None
    max_seq_length: Auto | int
    validation_file: str | None
    progress: PreflightProgress
    report: dict[str, Any] | None
    error: PreflightError | None


class PreviewToken(BaseModel):
    """A token, the text that it adds, and whether it counts in the loss."""

    id: int
    text: str
    trained: bool


class SamplePreview(BaseModel):
    """One sample as the model will see it."""

    object: Literal["file.preflight.sample"] = "file.preflight.sample"
    file_id: str
    index: int
    line: int
    model: str
    template: str
    max_seq_length: int | None
    length: int
    trained: int
    cut_at: int | None
    tokens: list[PreviewToken]
    truncated: bool


@router.get("/{file_id}/preflight", response_model=PreflightObject, responses={202: {"model": PreflightObject}})
def preflight(
    file_id: str,
    project_id: CurrentProject,
    parts: PartsDep,
    model: ModelQuery = None,
    template: TemplateQuery = "auto",
    max_seq_length: LengthQuery = "auto",
    validation_file: FileQuery = None,
    system_prompt: SystemQuery = None,
) -> Response:
    """Problems, lengths, duplicates and what a cut would cost. Answers 202 until the pass over the file is done."""
    with parts.database.read() as session:
        file = _dataset(get_file(session, project_id, file_id), "file_id")
        other = validation_file and _dataset(get_file(session, project_id, validation_file), "validation_file")
    length = _length(max_seq_length)
    row = parts.preflights.look(asked_of(file, model, template, system_prompt, other or None))
    made = PreflightObject(
        file_id=file.id,
        status=row.status,
        model=model,
        template=row.found["template"] or template if row.found else template,
        max_seq_length=length,
        validation_file=validation_file,
        progress=_progress(parts, row, file),
        report=_report(parts.cards, row, model, length) if row.status == "completed" else None,
        error=PreflightError(message=row.error or "") if row.status == "failed" else None,
    )
    return Response(as_json(made), status_code=202 if row.status == "running" else 200, media_type="application/json")


def asked_of(
    file: File, model: str | None, template: Auto | PromptTemplate, system_prompt: str | None, other: File | None
) -> Asked:
    """What to look for in a file. Without a model, template and system prompt change nothing."""
    return Asked(
        file_id=file.id,
        file_key=file.storage_key,
        model=model,
        template=None if model is None or template == "auto" else template,
        system_prompt=None if model is None else system_prompt,
        validation_id=other.id if other else None,
        validation_key=other.storage_key if other else None,
    )


def _length(text: str) -> Auto | int:
    if text == "auto":
        return "auto"
    if not 16 <= int(text) <= 131_072:
        raise InvalidRequestError("'max_seq_length': use \"auto\" or 16 to 131072.", param="max_seq_length")
    return int(text)


def _dataset(file: File, param: str) -> File:
    if file.purpose != "fine-tune":
        raise InvalidRequestError(
            f"File {file.id} has the purpose '{file.purpose}'; only those of 'fine-tune' have a preflight.",
            param=param,
            code="wrong_purpose",
        )
    return file


def _progress(parts: Parts, row: Preflight, file: File) -> PreflightProgress:
    done = row.status == "completed"
    left: float | None = 0 if done else None
    if row.status == "running" and row.bytes:
        with parts.database.read() as session:
            now = session.scalar(select(db_now())) or row.started_at
        left = round((now - row.started_at) / row.bytes * max(0, file.bytes - row.bytes), 1)
    return PreflightProgress(
        bytes=file.bytes if done else row.bytes, total_bytes=file.bytes, samples=row.samples, seconds_left=left
    )


def _report(cards: BaseCards, row: Preflight, model: str | None, asked: Auto | int) -> dict[str, Any]:
    assert row.found is not None
    card = cards.find(model) if model is not None else None
    context = card.card.config.get("max_position_embeddings") if card is not None else None
    return make_report(row.found, asked=asked, context_length=context, note=row.note)


@router.get("/{file_id}/preflight/samples/{index}")
def preview_sample(
    file_id: str,
    index: Annotated[int, Path(ge=0, le=1_000_000)],
    project_id: CurrentProject,
    parts: PartsDep,
    session: ReadSession,
    model: ModelQuery = None,
    template: TemplateQuery = "auto",
    max_seq_length: LengthQuery = "auto",
    system_prompt: SystemQuery = None,
) -> SamplePreview:
    """One sample's tokens, which of them are trained, and where it would be cut. Samples are counted from 0."""
    file = _dataset(get_file(session, project_id, file_id), "file_id")
    if model is None:
        raise InvalidRequestError("'model' is missing: its tokenizer makes the tokens.", param="model")
    row = session.get(Preflight, (file.id, asked_of(file, model, template, system_prompt, None).key(parts.cards)))
    session.close()  # what follows reads storage, and may take a while
    tokenizer = parts.cards.get(model)
    line, sample = _find_sample(parts, file, index)
    chosen = tokenizer.card.default_template if template == "auto" else template
    encoded = encode_sample(sample, chosen, tokenizer, system_prompt)
    asked = _length(max_seq_length)
    length = None if asked == "auto" else asked
    if length is None and row is not None and row.status == "completed":
        cut = _report(parts.cards, row, model, "auto")["cut"]
        length = cut["max_seq_length"] if cut else None
    shown = encoded.input_ids[:_SHOWN_TOKENS]
    return SamplePreview(
        file_id=file.id,
        index=index,
        line=line,
        model=model,
        template=chosen,
        max_seq_length=length,
        length=len(encoded.input_ids),
        trained=sum(encoded.trained),
        cut_at=length if length is not None and length < len(encoded.input_ids) else None,
        tokens=_tokens(tokenizer, shown, encoded),
        truncated=len(shown) < len(encoded.input_ids),
    )


def _tokens(tokenizer: CardTokenizer, shown: list[int], encoded: Encoded) -> list[PreviewToken]:
    texts = tokenizer.texts(shown)
    return [
        PreviewToken(id=token, text=text, trained=trained)
        for token, text, trained in zip(shown, texts, encoded.trained, strict=False)
    ]


def _find_sample(parts: Parts, file: File, index: int) -> tuple[int, Sample]:
    """The sample at ``index`` with its line. Raises NotFoundError behind the last."""
    seen = 0
    chunks = parts.storage.get(file.storage_key)
    for line, found in numbered_samples(chunks, parts.settings.max_line_bytes, DatasetReport()):
        if isinstance(found, Sample):
            if seen == index:
                return line, found
            seen += 1
    raise NotFoundError(f"File {file.id} has {seen:,} samples; they are counted from 0.", code="not_found")
