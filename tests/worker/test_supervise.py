"""One attempt, with a real child process, on both databases."""

import errno
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from sqlalchemy import select

from core.errors import InvalidRequestError
from core.settings import Settings
from core.storage import Storage
from models import lifecycle
from models.database import Database
from models.status import JobStatus
from models.tables import EvalOutputItem, File, FineTunedModel, Job
from tests.waiting import wait_for
from tests.worker.stand_in import loss
from tests.worker.world import World
from worker.supervise import Attempt, describe_crash


@pytest.fixture
def world(database: Database, storage: Storage, settings: Settings, tmp_path: Path) -> World:
    catalogue = tmp_path / "catalogue.toml"
    catalogue.write_text('[base]\nsource = "folder"\npath = "/nowhere"\n')
    quick = {"catalogue": catalogue, "heartbeat_seconds": 0.1, "cancel_grace_seconds": 1}
    return World(database, storage, settings.model_copy(update=quick))


@contextmanager
def running(attempt: Attempt) -> Iterator[threading.Thread]:
    """The attempt in a thread; it must be over soon after the block."""
    thread = threading.Thread(target=attempt.run)
    thread.start()
    yield thread
    thread.join(20)
    assert not thread.is_alive()


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if "stand_in.py" in command_of(child)]


def command_of(process: psutil.Process) -> str:
    """A process's command line, "" for one that has just ended."""
    with suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


def files_of(world: World, job_id: str) -> list[File]:
    with world.database.read() as session:
        return list(session.scalars(select(File).where(File.job_id == job_id).order_by(File.id)))


def test_a_run_that_succeeds_leaves_everything_and_an_empty_work_folder(world: World) -> None:
    job_id = world.add_job()
    world.attempt().run()
    job = world.job(job_id)
    assert (job.status, job.step, job.total_steps, job.trained_tokens) == (JobStatus.SUCCEEDED, 6, 6, 1234)
    assert job.fine_tuned_model == f"ft:base:My-team:docs:{job_id[-8:]}"
    assert job.report == {"samples": 3, "seconds": 1.5}
    assert job.resolved is not None
    assert job.resolved["prompt_template"] == "chat"
    assert (job.lease_owner, job.lease_expires_at) == (None, None)
    files = files_of(world, job_id)
    assert [(file.filename, file.purpose) for file in files] == [
        ("step_metrics.csv", "fine-tune-results"),
        ("adapter.zip", "fine-tune-results"),
    ]
    assert b"".join(world.storage.get(files[0].storage_key)).startswith(b"step,train_loss,")
    with world.database.read() as session:
        model = session.get_one(FineTunedModel, job.fine_tuned_model)
        assert (model.adapter_file_id, model.base_model, model.prompt_template) == (files[1].id, "base", "chat")
    assert [(row.step, row.train_loss) for row in world.steps(job_id)] == [(step, loss(step)) for step in range(1, 7)]
    assert [row.step for row in world.checkpoints(job_id)] == [2, 4, 6]
    assert [path.name for path in (world.settings.home / "work").iterdir()] == ["lock"]


def test_metrics_events_speak_openais_words(world: World) -> None:
    job_id = world.add_job()
    world.attempt().run()
    metrics = [event for event in world.events(job_id) if event.type == "metrics"]
    assert metrics[0].message == "Step 1/6: training loss=2.00"
    assert metrics[0].data == {"step": 1, "total_steps": 6, "train_loss": 2.0, "train_mean_token_accuracy": 0.5}
    assert metrics[-1].message == "Step 6/6: training loss=0.33, validation loss=1.40"
    assert metrics[-1].data is not None
    assert (metrics[-1].data["valid_loss"], metrics[-1].data["full_valid_loss"]) == (1.4, 1.4)


def test_a_crash_is_taken_up_again_from_the_stored_checkpoint_without_doubled_steps(world: World) -> None:
    job_id = world.add_job()
    world.attempt("crash=6").run()
    job = world.job(job_id)
    assert (job.status, job.attempt) == (JobStatus.QUEUED, 1)
    assert "Job queued again: its process was killed by signal 9 (out of memory?)" in world.messages(job_id)
    assert len(world.steps(job_id)) == 5
    world.attempt("crash=6").run()
    assert world.job(job_id).status == JobStatus.SUCCEEDED
    assert "Resumed from the checkpoint at step 4" in world.messages(job_id)
    assert [(row.step, row.attempt) for row in world.steps(job_id)] == [(1, 1), (2, 1), (3, 1), (4, 1), (5, 2), (6, 2)]


def test_a_smaller_plan_is_stored_and_given_to_the_next_attempt(world: World) -> None:
    job_id = world.add_job()
    world.attempt("replan", "crash=3").run()
    resolved = world.job(job_id).resolved or {}
    assert (world.job(job_id).status, resolved["pass_tokens"]) == (JobStatus.QUEUED, 7)
    world.attempt("crash=3").run()
    assert world.job(job_id).status == JobStatus.SUCCEEDED
    assert (world.job(job_id).resolved or {})["plan"]["pass_tokens"] == 7


def test_a_job_that_crashes_three_times_fails_as_worker_lost(world: World) -> None:
    job_id = world.add_job()
    for _ in range(3):
        world.attempt("crash-always").run()
    job = world.job(job_id)
    assert (job.status, job.error_code, job.attempt) == (JobStatus.FAILED, "worker_lost", 3)
    assert "signal 9" in (job.error_message or "")


def test_a_named_failure_ends_the_job_at_once(world: World) -> None:
    job_id = world.add_job()
    world.attempt("fail").run()
    job = world.job(job_id)
    assert (job.status, job.attempt) == (JobStatus.FAILED, 1)
    error = (job.error_code, job.error_message, job.error_param)
    assert error == ("dataset_unusable", "line 3: nothing to learn", "training_file")


@pytest.mark.parametrize("modes", [("steps=1000", "pause=0.02"), ("hang", "steps=1")], ids=["obeys", "ignores SIGTERM"])
def test_a_cancel_ends_the_child_within_the_grace(world: World, modes: tuple[str, ...]) -> None:
    job_id = world.add_job()
    with running(world.attempt(*modes)) as thread:
        wait_for(lambda: world.job(job_id).step > 0)
        world.cancel(job_id)
        thread.join(world.settings.cancel_grace_seconds + 2)
        assert not thread.is_alive()
    assert world.job(job_id).status == JobStatus.CANCELLED
    assert world.messages(job_id)[-1] == "Job cancelled"
    assert children() == []


def test_a_cancel_before_the_child_starts_means_that_it_never_starts(world: World) -> None:
    job_id = world.add_job()
    claim = world.claim()
    world.cancel(job_id)
    attempt = world.attempt("steps=1000", "pause=0.1", claim=claim)
    began = time.monotonic()
    attempt.run()
    assert world.job(job_id).status == JobStatus.CANCELLED
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("cancelled_at", [1, 3, 6])
def test_a_race_of_cancel_and_success_has_one_winner(world: World, cancelled_at: int) -> None:
    job_id = world.add_job()
    with running(world.attempt("pause=0.03")):
        wait_for(lambda: world.job(job_id).step >= cancelled_at)
        with suppress(InvalidRequestError), world.database.write() as session:  # refused when the job has just ended
            lifecycle.cancel(session, session.get_one(Job, job_id))
    job = world.job(job_id)
    ends = {"The job has successfully completed", "Job cancelled"} & set(world.messages(job_id))
    assert ends == {"The job has successfully completed" if job.status == JobStatus.SUCCEEDED else "Job cancelled"}
    assert bool(files_of(world, job_id)) == (job.status == JobStatus.SUCCEEDED)


def test_a_drain_hands_the_job_back_with_its_progress_and_does_not_count(world: World) -> None:
    job_id = world.add_job()
    attempt = world.attempt("steps=1000", "pause=0.02", "save=5000")
    with running(attempt):
        wait_for(lambda: world.job(job_id).step > 3)
        attempt.drain()
    job = world.job(job_id)
    assert (job.status, job.attempt) == (JobStatus.QUEUED, 0)
    saved = world.checkpoints(job_id)[-1].step
    assert saved == job.step
    world.attempt(f"steps={saved + 2}").run()
    assert world.job(job_id).status == JobStatus.SUCCEEDED
    assert f"Resumed from the checkpoint at step {saved}" in world.messages(job_id)
    assert [row.step for row in world.steps(job_id)] == list(range(1, saved + 3))


def test_a_lost_lease_kills_the_child_and_nothing_more_is_written(world: World) -> None:
    job_id = world.add_job()
    with running(world.attempt("steps=1000", "pause=0.01", "hang")):
        wait_for(lambda: world.job(job_id).step > 0)
        world.lose(job_id)
        world.claim("another")
        wait_for(lambda: children() == [])
    after = (world.job(job_id).step, len(world.steps(job_id)), world.messages(job_id))
    assert world.job(job_id).status == JobStatus.RUNNING
    assert world.job(job_id).lease_owner == "another"
    assert after[2][-1] == "Job started again, attempt 2"
    assert files_of(world, job_id) == []


def test_a_damaged_checkpoint_is_passed_over(world: World) -> None:
    job_id = world.add_job()
    world.attempt("crash=6").run()
    newest = world.checkpoints(job_id)[-1]
    assert newest.step == 4
    zipped = bytearray(b"".join(world.storage.get(newest.storage_key)))
    zipped[50] ^= 1
    world.storage.put(newest.storage_key, iter([bytes(zipped)]))
    world.attempt("crash=6").run()
    assert world.job(job_id).status == JobStatus.SUCCEEDED
    messages = world.messages(job_id)
    assert any(message.startswith("The checkpoint at step 4 is damaged") for message in messages)
    assert "Resumed from the checkpoint at step 2" in messages
    assert [row.step for row in world.steps(job_id)] == [1, 2, 3, 4, 5, 6]


def test_a_checkpoint_that_differs_from_its_manifest_is_never_stored(world: World) -> None:
    job_id = world.add_job()
    world.attempt("torn").run()
    assert world.checkpoints(job_id) == []
    assert any("step 2 could not be stored: state.json differs" in message for message in world.messages(job_id))
    assert world.job(job_id).status == JobStatus.SUCCEEDED


def test_a_storage_that_refuses_the_results_fails_the_job_with_storage_error(world: World, tmp_path: Path) -> None:
    job_id = world.add_job()
    (tmp_path / "storage" / "jobs").write_bytes(b"a file where a folder is needed")
    world.attempt().run()
    job = world.job(job_id)
    assert (job.status, job.error_code) == (JobStatus.FAILED, "storage_error")
    assert files_of(world, job_id) == []


def test_a_full_disk_fails_the_job_at_once_and_says_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    job_id = world.add_job()
    monkeypatch.setattr("worker.supervise.Preparation.prepare", full)
    world.attempt().run()
    job = world.job(job_id)
    assert (job.status, job.error_code, job.attempt) == (JobStatus.FAILED, "disk_full", 1)
    assert "No space left on device" in (job.error_message or "")


def test_a_result_that_is_missing_fails_the_job(world: World) -> None:
    job_id = world.add_job()
    world.attempt("bare").run()
    assert (world.job(job_id).status, world.job(job_id).error_code) == (JobStatus.FAILED, "artifact_missing")


def test_a_training_file_that_is_gone_fails_the_job(world: World) -> None:
    job_id = world.add_job(training_file="file-none")
    world.attempt().run()
    job = world.job(job_id)
    assert (job.status, job.error_code, job.error_param) == (JobStatus.FAILED, "file_not_found", "training_file")


def test_lines_that_are_none_and_texts_that_databases_refuse_do_no_harm(world: World) -> None:
    job_id = world.add_job()
    world.attempt("noise", "hostile").run()
    assert world.job(job_id).status == JobStatus.SUCCEEDED
    assert "NUL \N{REPLACEMENT CHARACTER} within" in world.messages(job_id)


def test_a_fast_trainer_loses_no_step(world: World) -> None:
    job_id = world.add_job()
    world.attempt("steps=600", "save=5000").run()
    assert [row.step for row in world.steps(job_id)] == list(range(1, 601))
    assert world.job(job_id).status == JobStatus.SUCCEEDED


def test_an_evaluation_stores_its_items_with_its_status(world: World) -> None:
    tuned = world.add_job()
    world.attempt().run()
    job_id = world.add_evaluation(world.job(tuned).fine_tuned_model or "", items=3)
    world.attempt().run()
    job = world.job(job_id)
    assert (job.status, job.step, job.total_steps) == (JobStatus.SUCCEEDED, 3, 3)
    assert job.report == {"adapter_files": ["adapter_config.json", "manifest.json"], "template": "chat"}
    assert [file.filename for file in files_of(world, job_id)] == ["scores.json", "codebleu.png", "items.jsonl"]
    with world.database.read() as session:
        items = session.scalars(select(EvalOutputItem).order_by(EvalOutputItem.position)).all()
    assert [(item.position, item.status, item.run_id) for item in items] == [(n, "pass", job_id) for n in range(3)]
    assert items[0].sample["output_text"] == "a\N{REPLACEMENT CHARACTER}b"
    assert [(result["name"], result["score"]) for result in items[0].results["results"]] == [("c", 0.5)]


def test_an_evaluation_of_a_checkpoint_gets_its_adapter_and_how_it_was_trained(world: World) -> None:
    tuned = world.add_job()
    world.attempt().run()
    name = f"{world.job(tuned).fine_tuned_model}:ckpt-step-4"
    job_id = world.add_evaluation(name)
    world.attempt().run()
    job = world.job(job_id)
    assert (job.status, job.error_message) == (JobStatus.SUCCEEDED, None)
    assert job.report == {"adapter_files": ["manifest.json", "state.json"], "template": "chat"}


def test_the_child_trains_on_while_the_database_is_away(sqlite_url: str, storage: Storage, tmp_path: Path) -> None:
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    catalogue = tmp_path / "catalogue.toml"
    catalogue.write_text('[base]\nsource = "folder"\npath = "/nowhere"\n')
    quick = Settings(home=tmp_path / "home", catalogue=catalogue, heartbeat_seconds=0.1)
    world = World(Database(sqlite_url), storage, quick)
    job_id = world.add_job()
    aside = path.with_name("aside")
    with running(world.attempt("steps=40", "pause=0.02")):
        wait_for(lambda: world.job(job_id).step > 2)
        world.database.dispose()
        # A folder in the file's place: no connection can be opened. The journal goes aside as well.
        aside.mkdir()
        for part in path.parent.glob(f"{path.name}*"):
            shutil.move(part, aside / part.name)
        path.mkdir()
        pid = children()[0].pid
        wait_for(lambda: not psutil.pid_exists(pid))  # it reached its end without us
        path.rmdir()
        for part in aside.iterdir():
            shutil.move(part, path.parent / part.name)
    assert world.job(job_id).status == JobStatus.SUCCEEDED
    assert [row.step for row in world.steps(job_id)] == list(range(1, 41))
    world.database.dispose()


@pytest.mark.parametrize(
    ("exit_code", "stderr", "told"),
    [
        (-9, "", "its process was killed by signal 9 (out of memory?)"),
        (-11, "x", "its process was killed by signal 11"),
        (1, "a\nValueError: b\n", "its process ended with exit code 1 and without a result (ValueError: b)"),
        (0, "", "its process ended with exit code 0 and without a result"),
    ],
)
def test_a_crash_is_told_in_plain_words(exit_code: int, stderr: str, told: str) -> None:
    assert describe_crash(exit_code, stderr) == told
