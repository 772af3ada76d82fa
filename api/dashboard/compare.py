"""Several jobs over each other: their curves in one chart, what differs in their settings, and their scores."""

import json
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.dashboard.job_pages import Row, evaluations_of, rows_of
from api.dashboard.page import PageRoute, ViewerDep, page
from api.dashboard.scores import Criterion, criteria_of
from api.dashboard.settings_table import settings_of
from api.deps import ReadSession
from core.errors import InvalidRequestError
from models import lifecycle
from models.status import JobKind
from models.tables import EvalRun, File, Job

router = APIRouter(route_class=PageRoute)

#: Colours that can still be told apart.
MOST = 6
#: Evaluations among which those are looked for that can be compared.
_LOOKED_AT = 120


@dataclass(frozen=True)
class Scored:
    """A model's evaluation. ``alike``: it asked the same questions and judged as those of the others."""

    run: EvalRun
    criterion: Criterion
    alike: bool


@dataclass(frozen=True)
class Difference:
    """A setting that is not the same in all jobs, with each job's value."""

    name: str
    values: list[Any]


@router.get("/compare")
def compare_page(
    request: Request,
    viewer: ViewerDep,
    session: ReadSession,
    job: Annotated[list[str] | None, Query(max_length=20)] = None,
) -> Response:
    """The comparison of the jobs that are named."""
    ids = list(dict.fromkeys(job or []))
    if len(ids) > MOST:
        raise InvalidRequestError(f"At most {MOST} jobs can be compared; {len(ids)} were chosen.")
    found = [lifecycle.get_job(session, viewer.project_id, job_id, JobKind.FINE_TUNE) for job_id in ids]
    rows = rows_of(session, found)
    models = [str(one.fine_tuned_model) for one in found if one.fine_tuned_model]
    chosen = scored(session, evaluations_of(session, viewer.project_id, models, _LOOKED_AT)) if models else {}
    return page(
        request,
        "compare.html",
        rows=rows,
        differences=differences(found, rows),
        scored=[chosen.get(one.fine_tuned_model or "") for one in found],
    )


def scored(session: Session, found: list[tuple[EvalRun, Job]]) -> dict[str, Scored]:
    """An evaluation of each model: the newest that most of the models have in common, else the model's newest."""
    digests = _digests(session, {str(ran.spec["items_file"]) for _, ran in found})
    groups: dict[str, dict[str, tuple[EvalRun, Criterion]]] = {}
    for run, ran in found:
        if criteria := criteria_of(ran.report):
            items = str(ran.spec["items_file"])
            asked = [ran.spec["criteria"], ran.spec.get("messages"), digests.get(items, items)]
            groups.setdefault(json.dumps(asked, sort_keys=True), {}).setdefault(ran.model, (run, criteria[0]))
    common: dict[str, tuple[EvalRun, Criterion]] = max(groups.values(), key=len, default={})
    chosen = {model: Scored(run, criterion, alike=True) for model, (run, criterion) in common.items()}
    for group in groups.values():
        for model, (run, criterion) in group.items():
            chosen.setdefault(model, Scored(run, criterion, alike=False))
    return chosen


def _digests(session: Session, ids: set[str]) -> dict[str, str]:
    """Hashes of files by id: the same items may lie in several files."""
    return {
        str(file): str(digest) for file, digest in session.execute(select(File.id, File.sha256).where(File.id.in_(ids)))
    }


def differences(jobs: list[Job], rows: list[Row]) -> list[Difference]:
    """The settings in which the jobs differ."""
    tables = [
        {
            (group.title, setting.name): setting.value
            for group in settings_of(job, row.job)
            for setting in group.settings
        }
        for job, row in zip(jobs, rows, strict=True)
    ]
    found = []
    if tables:
        for data in ("model", "file"):
            values: list[Any] = [row.job.model if data == "model" else row.file for row in rows]
            if len(set(values)) > 1:
                found.append(Difference("base model" if data == "model" else "training file", values))
    for title, name in tables[0] if tables else ():
        values = [table.get((title, name)) for table in tables]
        if any(value != values[0] for value in values):
            found.append(Difference(f"{title} · {name.replace('_', ' ')}", values))
    return found
