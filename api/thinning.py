"""A long curve in few points, so that a chart of 100,000 steps draws at once: extremes stay, the rest is left out."""

from collections.abc import Iterator, Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from models.tables import StepMetric

#: What charts draw beside the training loss, which gets half of the points.
OTHERS = ("valid_loss", "codebleu", "learning_rate", "tokens_per_second", "peak_memory")
#: Ids in one IN (…): PostgreSQL and SQLite take 32,766 parameters and more.
_AT_ONCE = 1000


def thinned(session: Session, job_id: str, points: int) -> list[StepMetric]:
    """At most ``points`` steps of a job, in their order, so that no curve loses an extreme.

    The steps are cut into equal runs; of each, the steps of the lowest and the highest value stay, for each curve. The
    first and the last step always stay. A job of no more than ``points`` steps comes whole.
    """
    columns = [StepMetric.step, StepMetric.train_loss, *(getattr(StepMetric, name) for name in OTHERS)]
    mine = select(*columns).where(StepMetric.job_id == job_id).order_by(StepMetric.step)
    rows = session.execute(mine.limit(points + 1)).all()
    query = select(StepMetric).where(StepMetric.job_id == job_id).order_by(StepMetric.step)
    if len(rows) <= points:
        return list(session.scalars(query))
    steps, losses, *others = zip(*session.execute(mine), strict=True)
    kept = {0, len(steps) - 1, *extremes(losses, (points - 2) // 4)}
    for values in others:
        kept.update(extremes(values, max(1, (points - 2) // (4 * len(others)))))
    wanted = [steps[place] for place in sorted(kept)]
    found: list[StepMetric] = []
    for start in range(0, len(wanted), _AT_ONCE):
        found += session.scalars(query.where(StepMetric.step.in_(wanted[start : start + _AT_ONCE])))
    return found


def extremes(values: Sequence[float | None], runs: int) -> Iterator[int]:
    """Places of the lowest and of the highest value in each of ``runs`` equal runs of ``values``; None is no value."""
    size = -(-len(values) // runs)
    for start in range(0, len(values), size):
        places = [place for place in range(start, min(start + size, len(values))) if values[place] is not None]
        if places:
            yield min(places, key=values.__getitem__)  # type: ignore[arg-type]  # None has been left out
            yield max(places, key=values.__getitem__)  # type: ignore[arg-type]
