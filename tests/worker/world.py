"""What the worker's tests share: jobs in a database, and commands of the stand-in."""

import sys
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select, update

from core.ids import new_id
from core.settings import Settings
from core.specs import CodeBleuCriterion, EvaluationSpec, FineTuneSpec, TemplateMessage
from core.storage import Storage
from models import accounts, lifecycle
from models.database import Database
from models.lifecycle import Claim
from models.status import JobKind
from models.tables import Checkpoint, Eval, EvalRun, File, Job, JobEvent, Project, StepMetric
from tests.waiting import wait_for
from worker.supervise import Attempt, Command

STAND_IN = Path(__file__).with_name("stand_in.py")


def stand_in(*modes: str) -> Command:
    """The command of a stand-in in these modes."""
    return lambda _: [sys.executable, str(STAND_IN), *modes, "--"]


@dataclass
class World:
    """A Hone with one project, and jobs made as the API makes them."""

    database: Database
    storage: Storage
    settings: Settings

    def __post_init__(self) -> None:
        with self.database.write() as session:
            found = session.scalar(select(Project.id))
            self.project_id = found or accounts.create_project(session, "My team").id

    def add_file(self, content: bytes, purpose: str = "fine-tune") -> str:
        file_id = new_id("file-")
        stored = self.storage.put(f"files/{file_id}", iter([content]))
        row = File(
            id=file_id,
            project_id=self.project_id,
            filename="a.jsonl",
            purpose=purpose,
            bytes=stored.bytes,
            sha256=stored.sha256,
            storage_key=stored.key,
        )
        with self.database.write() as session:
            session.add(row)
        return file_id

    def add_job(self, **spec: object) -> str:
        """Submit a fine-tune."""
        training_file = self.add_file(b'{"prompt": "a", "completion": "b"}\n' * 3)
        asked = FineTuneSpec.model_validate({"model": "base", "training_file": training_file, "suffix": "docs", **spec})
        return self._submit(JobKind.FINE_TUNE, asked.model, asked.model_dump(mode="json"), new_id("ftjob-"))

    def add_evaluation(self, model: str = "base", items: int = 3) -> str:
        """Submit an evaluation's run."""
        spec = EvaluationSpec(
            model=model,
            base_model="base",
            items_file=self.add_file(b'{"item": {"x": "y"}}\n' * items, "evals"),
            messages=(TemplateMessage(role="user", content="{{item.x}}"),),
            criteria=(CodeBleuCriterion(type="code_bleu", name="c", input="{{sample.output_text}}", reference="r"),),
        )
        job_id = self._submit(JobKind.EVALUATION, model, spec.model_dump(mode="json"), new_id("evalrun_"))
        with self.database.write() as session:
            made = Eval(project_id=self.project_id, name="e", data_source_config={}, testing_criteria={"criteria": []})
            session.add(made)
            session.flush()
            session.add(EvalRun(id=job_id, eval_id=made.id, job_id=job_id, name="r", data_source={}))
        return job_id

    def _submit(self, kind: JobKind, model: str, spec: dict[str, object], id: str) -> str:
        with self.database.write() as session:
            job = Job(id=id, project_id=self.project_id, kind=kind, model=model, spec=spec)
            return lifecycle.submit(session, job).id

    def claim(self, owner: str = "me") -> Claim:
        """Take the queued job; at the next look if another worker's late write holds its row just now."""
        claims: list[Claim] = []

        def taken() -> bool:
            with self.database.write() as session:
                claim = lifecycle.claim(session, owner, self.settings.lease_seconds)
            claims.extend([claim] if claim else [])
            return bool(claims)

        wait_for(taken, seconds=5)
        return claims[0]

    def attempt(self, *modes: str, claim: Claim | None = None) -> Attempt:
        return Attempt(claim or self.claim(), self.database, self.storage, self.settings, stand_in(*modes))

    def cancel(self, job_id: str) -> None:
        with self.database.write() as session:
            lifecycle.cancel(session, session.get_one(Job, job_id))

    def lose(self, job_id: str) -> None:
        """Let the lease run out, and have the reaper see it."""
        with self.database.write() as session:
            session.execute(update(Job).where(Job.id == job_id).values(lease_expires_at=0))  # waits for the row
            assert lifecycle.reap(session, self.settings.max_attempts) == [job_id]

    def job(self, job_id: str) -> Job:
        with self.database.read() as session:
            return session.get_one(Job, job_id)

    def steps(self, job_id: str) -> list[StepMetric]:
        with self.database.read() as session:
            query = select(StepMetric).where(StepMetric.job_id == job_id).order_by(StepMetric.step)
            return list(session.scalars(query))

    def checkpoints(self, job_id: str) -> list[Checkpoint]:
        with self.database.read() as session:
            query = select(Checkpoint).where(Checkpoint.job_id == job_id).order_by(Checkpoint.step)
            return list(session.scalars(query))

    def events(self, job_id: str) -> list[JobEvent]:
        with self.database.read() as session:
            return list(session.scalars(select(JobEvent).where(JobEvent.job_id == job_id).order_by(JobEvent.id)))

    def messages(self, job_id: str) -> list[str]:
        return [event.message for event in self.events(job_id)]
