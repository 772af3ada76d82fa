"""What is in a dataset: the preflight with its histogram, and single samples token by token."""

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from api import preflight
from api.dashboard.page import PageRoute, ViewerDep, page
from api.deps import Parts, PartsDep, ReadSession
from api.file_access import get_file
from api.preflight import PreflightObject
from core.errors import HoneError
from core.specs import Auto, PromptTemplate
from models.tables import File

router = APIRouter(route_class=PageRoute)

#: The histogram's drawing, in units of its own: wide enough that a bin is never below one.
WIDTH, HEIGHT = 960, 100
TEMPLATES = ("auto", "chat", "llama2", "alpaca", "none")
#: Datasets that a form offers to compare with.
_OFFERED = 200


@dataclass(frozen=True)
class Choice:
    """How to look at a dataset, as the page's form says."""

    model: str
    template: Auto | PromptTemplate
    max_seq_length: Auto | int
    validation_file: str | None


@dataclass(frozen=True)
class Bin:
    """A bar of the histogram; ``title`` says it in words."""

    x: float
    y: float
    width: float
    height: float
    cut: bool
    title: str


@dataclass(frozen=True)
class Histogram:
    """Bars, and where samples are cut; None where nothing is."""

    bins: list[Bin]
    cut_at: float | None
    first: int
    middle: int
    last: int


def histogram_of(report: dict[str, Any]) -> Histogram:
    """The lengths of a report as bars of equal width; the last bin is open and holds the longest."""
    lengths, cut = report["lengths"], report["cut"]
    edges, counts = lengths["histogram"]["edges"], lengths["histogram"]["counts"]
    most, width = max([1, *counts]), WIDTH / max(1, len(counts))
    limit: int | None = cut["max_seq_length"] if cut else None
    bins = []
    for place, count in enumerate(counts):
        height = max(1.5, HEIGHT * count / most) if count else 0.0
        title = f"{edges[place]:,} to {edges[place + 1] - 1:,} {lengths['unit']}: {count:,}"
        is_cut = limit is not None and edges[place] >= limit
        bins.append(Bin(place * width, HEIGHT - height, max(0.5, width - 2), height, is_cut, title))
    cut_at = _place_of(limit, edges, width) if limit is not None and cut["samples"] else None
    return Histogram(bins, cut_at, edges[0], edges[len(edges) // 2], edges[-1] - 1)


def _place_of(value: int, edges: list[int], width: float) -> float | None:
    for place in range(len(edges) - 1):
        if edges[place] <= value < edges[place + 1]:
            return width * (place + (value - edges[place]) / (edges[place + 1] - edges[place]))
    return None


def choose(
    parts: PartsDep,
    model: Annotated[str | None, Query(max_length=256)] = None,
    template: Auto | PromptTemplate = "auto",
    max_seq_length: Annotated[str, Query(max_length=9)] = "auto",
    validation_file: Annotated[str | None, Query(max_length=64)] = None,
) -> Choice:
    """What the form says; without a model, the first whose tokenizer is at hand."""
    length: Auto | int = "auto"
    if max_seq_length.isascii() and max_seq_length.isdigit():
        length = min(131_072, max(16, int(max_seq_length)))
    return Choice(model or _default_model(parts), template, length, validation_file or None)


ChoiceDep = Annotated[Choice, Depends(choose)]


def _default_model(parts: Parts) -> str:
    names = sorted(parts.catalogue)
    return next((name for name in names if parts.cards.find(name) is not None), names[0] if names else "")


def look(parts: Parts, viewer: ViewerDep, file: File, choice: Choice) -> PreflightObject:
    """The preflight of a file; asking starts it."""
    answer = preflight.preflight(
        file.id,
        viewer.project_id,
        parts,
        model=choice.model or None,
        template=choice.template,
        max_seq_length=str(choice.max_seq_length),
        validation_file=choice.validation_file,
    )
    return PreflightObject.model_validate_json(bytes(answer.body))


def context_of(parts: Parts, session: Session, viewer: ViewerDep, file: File, choice: Choice) -> dict[str, Any]:
    """What a page shows of a dataset."""
    found = look(parts, viewer, file, choice)
    others = select(File).where(File.project_id == viewer.project_id, File.purpose == "fine-tune", File.id != file.id)
    return {
        "file": file,
        "choice": choice,
        "found": found,
        "histogram": histogram_of(found.report) if found.report and found.report["samples"] else None,
        "models": sorted(parts.catalogue),
        "templates": TEMPLATES,
        "others": session.scalars(others.order_by(File.id.desc()).limit(_OFFERED)).all(),
        "width": WIDTH,
        "height": HEIGHT,
    }


@router.get("/files/{file_id}/preflight")
def preflight_part(
    file_id: str,
    request: Request,
    viewer: ViewerDep,
    parts: PartsDep,
    session: ReadSession,
    choice: ChoiceDep,
) -> Response:
    """The preflight alone, which a page asks for while it runs and when its form changes."""
    file = get_file(session, viewer.project_id, file_id)
    return page(request, "preflight.html", **context_of(parts, session, viewer, file, choice))


@router.get("/files/{file_id}/sample")
def sample_part(
    file_id: str,
    request: Request,
    viewer: ViewerDep,
    parts: PartsDep,
    session: ReadSession,
    choice: ChoiceDep,
    n: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
) -> Response:
    """One sample token by token; people count from 1."""
    shown, refusal = None, None
    try:
        shown = preflight.preview_sample(
            file_id,
            n - 1,
            viewer.project_id,
            parts,
            session,
            model=choice.model,
            template=choice.template,
            max_seq_length=str(choice.max_seq_length),
        )
    except HoneError as error:
        if error.code == "not_found" and "samples" not in error.message:
            raise
        refusal = error.message
    return page(request, "sample_tokens.html", file_id=file_id, n=n, shown=shown, refusal=refusal, choice=choice)
