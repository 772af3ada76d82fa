"""A run: jobs are submitted while processes are killed, stopped and wiped; then a checker compares promise and truth.

python -m tests.chaos.run --jobs 300 --faults 160 --seed 1
"""

import argparse
import secrets
import shutil
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine, func, select
from sqlalchemy.exc import DBAPIError

from core.storage import Storage
from models import accounts
from models.database import Database
from models.status import ENDED
from models.tables import Job
from tests.chaos import history
from tests.chaos.clients import Submitter
from tests.chaos.faults import Faults
from tests.chaos.history import Verdict
from tests.chaos.processes import WORKERS, Cluster

#: A job that has not ended so long after any other is stuck.
STUCK_SECONDS = 90


@dataclass(frozen=True)
class Report:
    """A run's figures, and what the checker found."""

    seed: int
    jobs: int
    seconds: float
    faults: dict[str, int]
    answers: dict[str, int]
    repeated: int
    pauses: dict[str, int]
    refused: int
    complaints: list[str]
    verdict: Verdict

    @property
    def is_clean(self) -> bool:
        return self.verdict.is_clean and not self.complaints

    def __str__(self) -> str:
        verdict = self.verdict
        kinds = sorted(self.faults.items())
        return "\n".join(
            [
                f"seed {self.seed}: {self.jobs} jobs, {sum(self.faults.values())} faults, {self.seconds:.0f} s",
                *(f"  {count:4d}  {name}" for name, count in kinds),
                f"requests by their answer: {self.answers}, {self.repeated} sent again after their answer",
                f"pauses by the job's status in the answer: {self.pauses}",
                f"claims {verdict.attempts}, transactions of workers {verdict.worker_transactions}, "
                f"claims found lost by their worker {self.refused}",
                f"lost {len(verdict.lost)}, doubled {len(verdict.doubled)}, stuck {len(verdict.stuck)}, "
                f"stale writes accepted {len(verdict.stale)}, wrong answers {len(self.complaints)}",
                *(verdict.lost + verdict.doubled + verdict.stuck + verdict.stale + self.complaints)[:50],
            ]
        )


def run(folder: Path, *, seed: int, jobs: int, faults: int) -> Report:
    """Do a run in an empty folder and judge it."""
    began = time.monotonic()
    with Cluster(folder) as cluster:
        cluster.start("postgres")
        database = Database(cluster.database_url)
        key = prepare(database)
        cluster.start(*(name for name in cluster.members if name != "postgres"))
        submitter = Submitter(cluster.base_url, key, jobs, seed)
        dealer = Faults(cluster, seed)
        submitter.start()
        try:
            dealer.deal(faults, until=lambda: submitter.is_done and _running(database.engine) == 0)
            dealer.settle()
            _wait_for_the_end(database.engine, submitter, dealer)
        finally:
            submitter.stop()
        verdict = history.check(database.engine, Storage(cluster.storage_url), submitter.acknowledged)
        database.dispose()
        refused = sum((cluster.logs / f"{name}.log").read_text().count("lease lost, attempt") for name in WORKERS)
    if len(submitter.acknowledged) != jobs:
        verdict.stuck.append(f"only {len(submitter.acknowledged)} of {jobs} jobs were acknowledged")
    return Report(
        seed,
        jobs,
        time.monotonic() - began,
        dict(dealer.done),
        dict(submitter.answers),
        submitter.repeated,
        dict(submitter.pauses),
        refused,
        submitter.complaints,
        verdict,
    )


def prepare(database: Database) -> str:
    """Wait for PostgreSQL, have it keep a record, and make a key."""
    deadline = time.monotonic() + 30
    while True:
        try:
            history.install_audit(database.engine)
            break
        except DBAPIError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    with database.write() as session:
        return accounts.create_key(session, accounts.create_project(session, "chaos"), "chaos")


def _running(engine: Engine) -> int | None:
    """How many jobs have not ended; None while the database is away."""
    with suppress(DBAPIError), engine.connect() as connection:
        return connection.scalar(select(func.count()).select_from(Job).where(Job.status.not_in(ENDED)))
    return None


def _wait_for_the_end(engine: Engine, submitter: Submitter, dealer: Faults) -> None:
    """Until every job has ended and every hint is sent, or nothing has ended for long."""
    before, deadline = -1, time.monotonic() + STUCK_SECONDS
    while time.monotonic() < deadline:
        dealer.revive()
        running = _running(engine)
        if submitter.is_done and running == 0:
            time.sleep(2)  # the relay's next look
            return
        if running is not None and running != before:
            before, deadline = running, time.monotonic() + STUCK_SECONDS
        time.sleep(0.2)


def main() -> int:
    """Run by the command line; the report goes to standard output. Exit code 1 when a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=300)
    parser.add_argument("--faults", type=int, default=160)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = secrets.randbelow(2**31) if options.seed is None else options.seed
    folder = Path(tempfile.mkdtemp(prefix="hone-chaos-run-"))
    report = run(folder, seed=seed, jobs=options.jobs, faults=options.faults)
    sys.stdout.write(f"{report}\n")
    if report.is_clean:
        shutil.rmtree(folder)
    else:
        sys.stdout.write(f"logs: {folder / 'logs'}\n")
    return 0 if report.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
