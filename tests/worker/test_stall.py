"""A child that hangs is told from one that is slow, and is stopped."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from core.settings import Settings
from core.storage import Storage
from models.database import Database
from models.status import JobStatus
from tests.waiting import wait_for
from tests.worker.test_supervise import children, running
from tests.worker.world import World
from worker import pulse
from worker.protocol import Alive, LineWriter, parse_line

#: Seconds without a line after which a child is taken to hang.
LIMIT = 1.0


@pytest.fixture
def world(database: Database, storage: Storage, settings: Settings, tmp_path: Path) -> World:
    catalogue = tmp_path / "catalogue.toml"
    catalogue.write_text('[base]\nsource = "folder"\npath = "/nowhere"\n')
    quick = {"catalogue": catalogue, "heartbeat_seconds": 0.1, "cancel_grace_seconds": 1}
    return World(database, storage, settings.model_copy(update=quick))


@contextmanager
def watched(world: World, job_id: str, *modes: str) -> Iterator[threading.Thread]:
    """An attempt whose limit is short once its first step is there: a child's start may take seconds."""
    attempt = world.attempt(*modes)
    with running(attempt) as thread:
        wait_for(lambda: world.job(job_id).step > 0)
        attempt._heart._settings = world.settings.model_copy(update={"stall_seconds": LIMIT})
        yield thread


def test_a_child_that_hangs_is_killed_and_the_job_goes_on_from_its_checkpoint(world: World) -> None:
    job_id = world.add_job()
    with watched(world, job_id, "stuck=4"):
        pass
    assert children() == []
    job = world.job(job_id)
    assert (job.status, job.attempt) == (JobStatus.QUEUED, 1)
    assert world.messages(job_id)[-1].startswith("Job queued again: it stalled: it made no progress for ")
    world.attempt("stuck=4").run()
    assert world.job(job_id).status == JobStatus.SUCCEEDED
    assert [row.step for row in world.steps(job_id)] == [1, 2, 3, 4, 5, 6]


def test_a_child_that_the_system_stops_is_one_that_hangs(world: World) -> None:
    job_id = world.add_job()
    with watched(world, job_id, "steps=1000", "pause=0.05"):
        os.kill(children()[0].pid, signal.SIGSTOP)
    assert world.job(job_id).status == JobStatus.QUEUED
    assert "it stalled" in world.messages(job_id)[-1]


def test_a_job_that_stalls_in_its_last_attempt_fails(world: World) -> None:
    job_id = world.add_job()
    short = {"stall_seconds": LIMIT, "max_attempts": 1}
    World(world.database, world.storage, world.settings.model_copy(update=short)).attempt("stuck=1").run()
    job = world.job(job_id)
    assert (job.status, job.error_code) == (JobStatus.FAILED, "worker_lost")
    assert "because it stalled" in (job.error_message or "")


def test_a_long_step_with_a_pulse_is_left_alone_and_its_progress_is_seen(world: World) -> None:
    job_id = world.add_job()
    with watched(world, job_id, "stuck=2", "alive=0.1") as thread:
        before = world.job(job_id).last_progress_at or 0
        thread.join(2 * LIMIT)
        assert thread.is_alive()
        assert (world.job(job_id).last_progress_at or 0) - before > LIMIT
        world.cancel(job_id)
    assert world.job(job_id).status == JobStatus.CANCELLED


def test_a_pulse_is_told_seldom_and_from_any_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lines"
    with path.open("w") as stream:
        lines = LineWriter(stream)
        monkeypatch.setattr(pulse, "EVERY", 0.2)
        pulse.listen(lambda: lines.send(Alive()))
        began = time.monotonic()
        threads = [threading.Thread(target=_beat_for, args=(0.5,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.monotonic() - began
        pulse.listen(lambda: None)
    told = [parse_line(line) for line in path.read_text().splitlines()]
    assert told
    assert all(isinstance(line, Alive) for line in told)
    assert len(told) <= 4 * (seconds / 0.2 + 1)


def test_a_download_has_a_pulse(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.utils.tqdm import _create_progress_bar

    from worker.base_models import _Download

    beats: list[None] = []
    monkeypatch.setattr(pulse, "beat", lambda: beats.append(None))
    bar = _create_progress_bar(cls=_Download, log_level=20, name="x", desc="Downloading", total=0, unit="B")
    bar.total += 10
    bar.refresh()
    bar.update(4)
    bar.set_postfix_str("4 B/s")
    bar.close()
    assert len(beats) == 1


def _beat_for(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pulse.beat()
