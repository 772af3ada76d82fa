"""Several jobs over each other: their curves in one chart, what differs in their settings, and their scores."""

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from api.dashboard.job_pages import Row, evaluations_of, rows_of
from api.dashboard.page import PageRoute, ViewerDep, page
from api.dashboard.scores import Criterion, criteria_of
from api.dashboard.settings_table import settings_of
from api.deps import ReadSession
from core.errors import InvalidRequestError
from models import lifecycle
from models.status import JobKind
from models.tables import Job

router = APIRouter(route_class=PageRoute)

#: Colours that can still be told apart.
MOST = 6


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
    scored: dict[str, Criterion] = {}
    for _, ran in evaluations_of(session, viewer.project_id, models) if models else []:
        if criteria := criteria_of(ran.report):
            scored.setdefault(ran.model, criteria[0])
    return page(
        request,
        "compare.html",
        rows=rows,
        differences=differences(found, rows),
        scored=[scored.get(one.fine_tuned_model or "") for one in found],
    )


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
