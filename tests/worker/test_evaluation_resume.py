"""An evaluation that dies anywhere and goes on ends with the result of a whole one, and asks nothing twice."""

import json
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from core.catalogue import FolderModel
from core.settings import Settings
from core.specs import EvaluationSpec
from core.storage import Storage
from models.database import Database
from models.status import JobStatus
from models.tables import EvalOutputItem, Job, KeptAnswer
from tests.waiting import wait_for
from tests.worker import dying
from tests.worker.dying import Instant, Run
from tests.worker.test_evaluate import ANSWER, REFERENCE
from tests.worker.test_merge import write_adapter
from tests.worker.world import World
from worker.kept import write_kept
from worker.protocol import Answered, EvaluationInput, ExitCode, Graded
from worker.supervise import Attempt, child_command

ITEMS = [
    {"question": f"Add {number}. " * (1 + number % 3), "completion": REFERENCE.format(number)} for number in range(20)
]
CRITERIA = [ANSWER, {"type": "text_similarity", "name": "alike", "input": "{{sample.output_text}}",
            "reference": "{{item.completion}}", "evaluation_metric": "bleu", "pass_threshold": 0.5}]  # fmt: skip


def spec_of(**more: Any) -> EvaluationSpec:
    return EvaluationSpec.model_validate(
        {
            "model": "ft:tiny:hone::1",
            "base_model": "tiny",
            "items_file": "file-1",
            "messages": [{"role": "user", "content": "{{item.question}}"}],
            "criteria": CRITERIA,
            "sampling": {"max_tokens": 8, "temperature": 1.0},
            **more,
        }
    )


@pytest.fixture(scope="module")
def job(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> EvaluationInput:
    folder = tmp_path_factory.mktemp("job")
    (folder / "items.jsonl").write_text("".join(json.dumps({"item": item}) + "\n" for item in ITEMS))
    return EvaluationInput(
        job_id="evalrun-1",
        spec=spec_of(),
        base_model=FolderModel(source="folder", path=tiny_llama),
        cache=folder / "cache",
        items_file=folder / "items.jsonl",
        adapter=write_adapter(tiny_llama, folder / "adapter"),
    )


@pytest.fixture(scope="module")
def whole(job: EvaluationInput, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run that nothing happens to."""
    run = dying.evaluate(job, tmp_path_factory.mktemp("whole") / "out")
    assert run.code == ExitCode.DONE
    assert len(told(run)) == 2 * len(ITEMS)
    return run


def told(*runs: Run) -> list[tuple[str, int]]:
    return [(line.side, line.position) for run in runs for line in run.lines if isinstance(line, Answered)]


def go_on(job: EvaluationInput, out: Path, before: list[Run], instant: Instant | None = None) -> Run:
    """Another attempt, with what the ones before told, as the worker keeps it."""
    lines = [line for run in before for line in run.lines]
    grades = {(line.side, line.position): line.grades for line in lines if isinstance(line, Graded)}
    rows = [
        (line.side, line.position, line.answer, grades.get((line.side, line.position)))
        for line in lines
        if isinstance(line, Answered)
    ]
    kept = out.with_suffix(".kept")
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_kept(kept, rows)
    return dying.evaluate(job.model_copy(update={"kept": kept if rows else None}), out, instant)


def results(run: Run) -> tuple[str, dict[str, Any]]:
    """Every item with its answers and grades, and the scores without what the clock says."""
    scores = json.loads((run.out / "artifacts" / "scores.json").read_text())
    del scores["generation"]
    return (run.out / "artifacts" / "items.jsonl").read_text(), scores


@pytest.mark.parametrize(
    "instants",
    [
        [Instant("answered", 1)],
        [Instant("answered", 7), Instant("answered", 7), Instant("answered", 7), Instant("graded", 5)],
        [Instant("merging", 0), Instant("scoring", 0), Instant("picture", 0)],
        [Instant("answered", 25, signal.SIGTERM), Instant("graded", 2, signal.SIGTERM)],
    ],
    ids=["before the first answer", "again and again", "between the phases", "told to stop"],
)
def test_killed_anywhere_it_ends_with_the_result_of_a_whole_run(
    instants: list[Instant], job: EvaluationInput, whole: Run, tmp_path: Path
):
    runs: list[Run] = []
    for number, instant in enumerate(instants):
        runs.append(go_on(job, tmp_path / f"killed-{number}" / "out", runs, instant))
        expected = ExitCode.STOPPED if instant.number is signal.SIGTERM else -instant.number
        assert runs[-1].code == expected
        assert not (runs[-1].out / "artifacts" / "codebleu.png").exists()
    runs.append(go_on(job, tmp_path / "last" / "out", runs))
    assert runs[-1].code == ExitCode.DONE
    assert results(runs[-1]) == results(whole)
    assert len(told(*runs)) == len(set(told(*runs))) == 2 * len(ITEMS), "an answer was generated twice"


# --- Through the worker and the database ---------------------------------------------------------------------------


@pytest.fixture
def database_url(postgres_url: str) -> str:
    """One engine: the real children take some 10 s each; tests/models holds both engines to the same."""
    return postgres_url


@pytest.fixture
def world(database: Database, storage: Storage, settings: Settings, catalogue: Path) -> World:
    quick = {"catalogue": catalogue, "heartbeat_seconds": 0.2, "cancel_grace_seconds": 5}
    return World(database, storage, settings.model_copy(update=quick))


def submit(world: World, *, items: int, max_tokens: int) -> str:
    """An evaluation of the tiny base."""
    job_id = world.add_evaluation()
    lines = "".join(json.dumps({"item": ITEMS[number % len(ITEMS)]}) + "\n" for number in range(items))
    file_id = world.add_file(lines.encode(), "evals")
    spec = spec_of(model="tiny", items_file=file_id, sampling={"max_tokens": max_tokens})
    with world.database.write() as session:
        session.get_one(Job, job_id).spec = spec.model_dump(mode="json")
    return job_id


def kept(world: World, job_id: str) -> list[KeptAnswer]:
    with world.database.read() as session:
        return list(session.scalars(select(KeptAnswer).where(KeptAnswer.job_id == job_id)))


def test_a_drained_evaluation_goes_on_elsewhere_with_the_answers_it_had(world: World):
    job_id = submit(world, items=64, max_tokens=200)
    attempt = Attempt(world.claim(), world.database, world.storage, world.settings, child_command)
    thread = threading.Thread(target=attempt.run)
    thread.start()
    wait_for(lambda: bool(kept(world, job_id)) or not thread.is_alive(), 120)
    attempt.drain()
    thread.join(60)
    assert world.job(job_id).status == JobStatus.QUEUED
    had = {row.position: row.answer for row in kept(world, job_id)}
    assert 0 < len(had) < 64

    Attempt(world.claim("another"), world.database, world.storage, world.settings, child_command).run()
    job = world.job(job_id)
    assert (job.status, job.attempt) == (JobStatus.SUCCEEDED, 1)
    assert kept(world, job_id) == []
    assert job.report["generation"]["kept_answers"] == len(had)
    assert f"Generating 64 answers with the base model; {len(had)} are there from the attempt before" in world.messages(
        job_id
    )
    with world.database.read() as session:
        items = session.scalars(select(EvalOutputItem).where(EvalOutputItem.run_id == job_id)).all()
        texts = {item.position: item.sample["output_text"] for item in items}
    assert len(texts) == 64
    assert {position: texts[position] for position in had} == {at: answer["text"] for at, answer in had.items()}
