"""A pause, from the request to the curve of the run that goes on."""

from collections.abc import Callable
from pathlib import Path

import pytest

from core.settings import Settings
from core.storage import Storage
from models import lifecycle
from models.database import Database
from models.status import JobStatus
from models.tables import Job
from tests.waiting import wait_for
from tests.worker.stand_in import loss
from tests.worker.test_supervise import children, running
from tests.worker.world import World

Request = Callable[..., None]


@pytest.fixture
def world(database: Database, storage: Storage, settings: Settings, tmp_path: Path) -> World:
    catalogue = tmp_path / "catalogue.toml"
    catalogue.write_text('[base]\nsource = "folder"\npath = "/nowhere"\n')
    quick = {"catalogue": catalogue, "heartbeat_seconds": 0.1, "cancel_grace_seconds": 1}
    return World(database, storage, settings.model_copy(update=quick))


def ask(world: World, request: Request, job_id: str) -> None:
    with world.database.write() as session:
        request(session, session.get_one(Job, job_id))


def test_a_paused_run_has_saved_and_left_before_it_says_so_and_goes_on_with_the_same_curve(world: World) -> None:
    job_id = world.add_job()
    with running(world.attempt("steps=1000", "pause=0.02", "save=5000")):
        wait_for(lambda: world.job(job_id).step > 3)
        ask(world, lifecycle.pause, job_id)
        wait_for(lambda: world.job(job_id).status == JobStatus.PAUSED)
        assert children() == []
    paused = world.job(job_id)
    assert (paused.attempt, paused.lease_owner, paused.estimated_finish) == (0, None, None)
    assert [row.step for row in world.checkpoints(job_id)] == [paused.step]
    assert [path.name for path in (world.settings.home / "work").iterdir()] == ["lock"]
    ask(world, lifecycle.resume, job_id)
    total = paused.step + 3
    world.attempt(f"steps={total}", "save=5000").run()
    job = world.job(job_id)
    assert (job.status, job.attempt) == (JobStatus.SUCCEEDED, 1)
    steps = [(row.step, row.train_loss) for row in world.steps(job_id)]
    assert steps == [(step, loss(step)) for step in range(1, total + 1)]
    told = [message for message in world.messages(job_id) if not message.startswith("Step")]
    assert told == [
        f"Created fine-tuning job: {job_id}",
        "Files validated, job queued",
        "Job started",
        "Pause requested",
        f"Checkpoint created at step {paused.step}",
        "Job paused",
        "Job resumed",
        "Job started",
        f"Resumed from the checkpoint at step {paused.step}",
        "The job has successfully completed",
    ]


def test_a_child_that_does_not_obey_is_killed_and_its_last_checkpoint_counts(world: World) -> None:
    job_id = world.add_job()
    with running(world.attempt("steps=2", "hang")):
        wait_for(lambda: len(world.checkpoints(job_id)) == 1)
        ask(world, lifecycle.pause, job_id)
    assert (world.job(job_id).status, world.job(job_id).attempt) == (JobStatus.PAUSED, 0)
    assert children() == []
    ask(world, lifecycle.resume, job_id)
    world.attempt("steps=4").run()
    assert [row.step for row in world.steps(job_id)] == [1, 2, 3, 4]
    assert "Resumed from the checkpoint at step 2" in world.messages(job_id)


def test_a_pause_before_the_child_starts_means_that_it_never_starts(world: World) -> None:
    job_id = world.add_job()
    claim = world.claim()
    ask(world, lifecycle.pause, job_id)
    world.attempt("steps=1000", "pause=0.1", claim=claim).run()
    assert world.job(job_id).status == JobStatus.PAUSED
    assert world.job(job_id).step <= 1


def test_a_run_that_reaches_its_end_first_has_ended(world: World) -> None:
    job_id = world.add_job()
    slow = World(world.database, world.storage, world.settings.model_copy(update={"heartbeat_seconds": 600}))
    with running(slow.attempt("steps=6", "pause=0.05")):
        wait_for(lambda: world.job(job_id).step > 0)
        ask(world, lifecycle.pause, job_id)
    assert world.job(job_id).status == JobStatus.SUCCEEDED
    assert "Job paused" not in world.messages(job_id)


def test_a_crash_while_it_is_being_paused_counts_and_the_job_is_paused(world: World) -> None:
    job_id = world.add_job()
    slow = World(world.database, world.storage, world.settings.model_copy(update={"heartbeat_seconds": 600}))
    with running(slow.attempt("steps=6", "pause=0.05", "crash=5")):
        wait_for(lambda: world.job(job_id).step > 0)
        ask(world, lifecycle.pause, job_id)
    assert (world.job(job_id).status, world.job(job_id).attempt) == (JobStatus.PAUSED, 1)
    assert world.messages(job_id)[-1] == "Job paused: its process was killed by signal 9 (out of memory?)"


def test_a_worker_that_dies_while_pausing_leaves_a_paused_job(world: World) -> None:
    job_id = world.add_job()
    with running(world.attempt("steps=1000", "pause=0.01", "hang")):
        wait_for(lambda: len(world.checkpoints(job_id)) > 0)
        with world.database.write() as session:  # both before the heartbeat's next look
            lifecycle.pause(session, session.get_one(Job, job_id))
            session.flush()
            session.get_one(Job, job_id).lease_expires_at = 0
            session.flush()
            assert lifecycle.reap(session, world.settings.max_attempts) == [job_id]
        wait_for(lambda: children() == [])  # its lease is lost
    assert world.job(job_id).status == JobStatus.PAUSED
    assert world.messages(job_id)[-1] == "Job paused: its worker stopped answering"


def test_a_pause_withdrawn_too_late_for_the_child_queues_the_job_again(world: World) -> None:
    job_id = world.add_job()
    with running(world.attempt("steps=2", "hang")):  # keeps its worker waiting for the grace
        wait_for(lambda: len(world.checkpoints(job_id)) == 1)
        attempt_heard = world.settings.heartbeat_seconds
        ask(world, lifecycle.pause, job_id)
        before = world.job(job_id).lease_expires_at or 0
        wait_for(lambda: (world.job(job_id).lease_expires_at or 0) > before + attempt_heard)
        ask(world, lifecycle.resume, job_id)
    job = world.job(job_id)
    assert (job.status, job.attempt, job.pause_requested_at) == (JobStatus.QUEUED, 0, None)
    assert world.messages(job_id)[-1] == "Job queued again: its pause was withdrawn"
