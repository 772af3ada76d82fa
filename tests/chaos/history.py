"""What happened, as PostgreSQL itself wrote it down, against what clients were promised."""

import hashlib
from collections import defaultdict
from dataclasses import dataclass, field

from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session

from core.storage import Storage
from models.status import ENDED, TRANSITIONS, JobStatus
from models.tables import Checkpoint, File, FineTunedModel, Job, JobEvent, OutboxMessage, StepMetric
from tests.chaos.processes import STEPS
from tests.worker.stand_in import loss

#: Every write to a job and what belongs to it, by whom, and whose the job was before: none of Hone's code takes part.
_AUDIT = """
CREATE TABLE audit (
    n bigserial PRIMARY KEY, tx text, app text, tbl text, job_id text,
    old_owner text, new_owner text, old_status text, new_status text, old_epoch int, new_epoch int
);
CREATE FUNCTION audit_job() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO audit (tx, app, tbl, job_id, old_owner, new_owner, old_status, new_status, old_epoch, new_epoch)
    VALUES (pg_current_xact_id()::text, current_setting('application_name'), TG_TABLE_NAME, NEW.id,
            OLD.lease_owner, NEW.lease_owner, OLD.status, NEW.status, OLD.lease_epoch, NEW.lease_epoch);
    RETURN NULL;
END $$;
CREATE FUNCTION audit_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO audit (tx, app, tbl, job_id)
    VALUES (pg_current_xact_id()::text, current_setting('application_name'), TG_TABLE_NAME,
            CASE TG_OP WHEN 'DELETE' THEN OLD.job_id ELSE NEW.job_id END);
    RETURN NULL;
END $$;
CREATE TRIGGER audit AFTER UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION audit_job();
"""
_OWNED = ("job_events", "step_metrics", "checkpoints", "files", "models")


def install_audit(engine: Engine) -> None:
    """Have PostgreSQL record every write to jobs and to what they own."""
    triggers = "".join(
        f"CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION audit_row();"
        for table in _OWNED
    )
    with engine.begin() as connection:
        connection.exec_driver_sql(_AUDIT + triggers)


@dataclass
class Verdict:
    """What the checker found; every list holds sentences, and is empty when all is well."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    attempts: int = 0
    worker_transactions: int = 0

    @property
    def is_clean(self) -> bool:
        return not (self.lost or self.doubled or self.stuck or self.stale)


def check(engine: Engine, storage: Storage, acknowledged: dict[str, str]) -> Verdict:
    """Judge a run that is over. ``acknowledged``: the job's id that each key was answered with."""
    verdict = Verdict()
    with Session(engine) as session:
        jobs = {job.id: job for job in session.scalars(select(Job))}
        for job_id in set(acknowledged.values()) - set(jobs):
            verdict.lost.append(f"{job_id} was acknowledged and is not there")
        if len(set(acknowledged.values())) != len(acknowledged):
            verdict.doubled.append("two keys were answered with one job")
        for job_id in set(jobs) - set(acknowledged.values()):
            verdict.doubled.append(f"{job_id} was made beside the one that its key was answered with")
        for job in jobs.values():
            verdict.attempts += job.lease_epoch
            _check_job(session, storage, job, verdict)
        unsent = session.scalars(select(OutboxMessage.id).where(OutboxMessage.sent_at.is_(None))).all()
        verdict.stuck += [f"hint {message} was never sent" for message in unsent]
    _check_writes(engine, verdict)
    return verdict


def _check_job(session: Session, storage: Storage, job: Job, verdict: Verdict) -> None:
    """One job ended well, once, with the results and the curve of a run that nothing had happened to."""
    if job.status not in ENDED:
        verdict.stuck.append(f"{job.id} is {job.status}")
        return
    if job.status != JobStatus.SUCCEEDED:
        verdict.lost.append(f"{job.id} {job.status}: {job.error_message}")
        return
    mine = {"job_id": job.id}
    ends = session.scalars(select(JobEvent).filter_by(**mine, message="The job has successfully completed")).all()
    files = session.scalars(select(File).filter_by(**mine)).all()
    models = session.scalars(select(FineTunedModel).filter_by(**mine)).all()
    for name, count, wanted in (("ends", len(ends), 1), ("result files", len(files), 2), ("models", len(models), 1)):
        if count != wanted:
            (verdict.doubled if count > wanted else verdict.lost).append(f"{job.id} has {count} {name}")
    steps = session.scalars(select(StepMetric).filter_by(**mine).order_by(StepMetric.step)).all()
    curve = [(row.step, row.train_loss) for row in steps]
    if curve != [(step, loss(step)) for step in range(1, STEPS + 1)]:
        verdict.lost.append(f"{job.id} has the curve {curve}")
    checkpoints = session.scalars(select(Checkpoint).filter_by(**mine)).all()
    for row in (*files, *checkpoints):
        _check_object(storage, job, row, verdict)


def _check_object(storage: Storage, job: Job, row: File | Checkpoint, verdict: Verdict) -> None:
    try:
        digest = hashlib.sha256(b"".join(storage.get(row.storage_key))).hexdigest()
    except FileNotFoundError:
        digest = "none"
    if digest != row.sha256:
        verdict.lost.append(f"{job.id}: {row.storage_key} is not what its row says")


def _check_writes(engine: Engine, verdict: Verdict) -> None:
    """Every transaction of a worker wrote to a job that was this worker's at that moment, or claimed it."""
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT * FROM audit ORDER BY n")).all()
    transactions: dict[tuple[str, str], list[tuple[str, ...]]] = defaultdict(list)
    for row in rows:
        transactions[row.tx, row.job_id].append(row)
        moved = row.old_status is not None and row.old_status != row.new_status
        if moved and JobStatus(row.new_status) not in TRANSITIONS[JobStatus(row.old_status)]:
            verdict.stale.append(f"{row.job_id} went from {row.old_status} to {row.new_status}")
    held: dict[tuple[str, str], tuple[str, int]] = {}
    for (_, job_id), written in transactions.items():  # in the order of their first writes
        first = written[0]
        if not first.app.startswith("worker"):
            continue
        verdict.worker_transactions += 1
        if first.tbl == "jobs" and (first.old_status, first.new_status) == ("queued", "running"):
            held[first.app, job_id] = (first.new_owner, first.new_epoch)
        elif first.tbl != "jobs":
            verdict.stale.append(f"{first.app} wrote {first.tbl} of {job_id} without a look at its claim")
        elif first.old_status != "running" or held.get((first.app, job_id)) != (first.old_owner, first.old_epoch):
            verdict.stale.append(f"{first.app} wrote to {job_id}, {first.old_status}, claim {first.old_epoch}")
