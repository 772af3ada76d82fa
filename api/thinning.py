"""A long curve in few points, so that a chart of 100,000 steps draws at once: extremes stay, the rest is left out."""

from collections.abc import Iterator, Sequence

from sqlalchemy import func, select
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
    query = select(StepMetric).where(StepMetric.job_id == job_id).order_by(StepMetric.step)
    if (session.scalar(select(func.count()).where(StepMetric.job_id == job_id)) or 0) <= points:
        return list(session.scalars(query))
    # Of the table, not of the class, and column by column: 100,000 steps take 0.13 s so, as objects and by zip 0.5 s.
    table = StepMetric.__table__
    columns = [table.c.step, table.c.train_loss, *(table.c[name] for name in OTHERS)]
    every = select(*columns).where(table.c.job_id == job_id).order_by(table.c.step)
    rows = session.connection().execute(every).all()
    steps, losses, *others = ([row[place] for row in rows] for place in range(len(columns)))
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
        run = values[start : start + size]
        known = [value for value in run if value is not None] if None in run else run
        if known:
            # Lowest and highest of plain numbers, then their places: 100,000 comparisons by key would take a second.
            yield start + run.index(min(known))  # type: ignore[type-var]  # None has been left out
            yield start + run.index(max(known))  # type: ignore[type-var]
