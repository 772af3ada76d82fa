"""The slot, and a whole worker process with Celery around it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from core.broker import make_celery, send_hint
from core.settings import Settings
from core.storage import Storage
from models.database import Database
from models.status import JobStatus
from tests.waiting import wait_for
from tests.worker.world import World, stand_in
from worker.slot import Slot

ROOT = Path(__file__).parents[2]
#: Nobody listens on port 1.
DEAD_BROKER = "redis://127.0.0.1:1/0"

StartWorker = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def world(database: Database, storage: Storage, settings: Settings, tmp_path: Path) -> World:
    catalogue = tmp_path / "catalogue.toml"
    catalogue.write_text('[base]\nsource = "folder"\npath = "/nowhere"\n')
    return World(database, storage, settings.model_copy(update={"catalogue": catalogue, "heartbeat_seconds": 0.2}))


@pytest.fixture
def start_worker(world: World, tmp_path: Path) -> Iterator[StartWorker]:
    """Starts worker processes on the test's database, storage and broker; they are gone after the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*modes: str, redis_url: str, **settings: str) -> subprocess.Popen[bytes]:
        known = {"home", "database_url", "storage_url", "catalogue", "heartbeat_seconds"}
        values = {name: str(getattr(world.settings, name)) for name in known} | {"redis_url": redis_url} | settings
        environment = os.environ | {f"HONE_{name.upper()}": value for name, value in values.items()}
        with (tmp_path / "worker.log").open("ab") as log:
            command = [sys.executable, "-m", "tests.worker.run_worker", *modes]
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def child_of(worker: subprocess.Popen[bytes]) -> psutil.Process:
    found: list[psutil.Process] = []

    def look() -> bool:
        found[:] = [child for child in psutil.Process(worker.pid).children() if "stand_in.py" in child.cmdline()[1]]
        return bool(found)

    wait_for(look)
    return found[0]


def test_a_slot_carries_out_one_job_after_another_and_a_call_wakes_it(world: World) -> None:
    first, second = world.add_job(), world.add_job()
    patient = world.settings.model_copy(update={"poll_seconds": 600})
    slot = Slot(world.database, world.storage, patient, stand_in("steps=1"))
    slot.start()
    wait_for(lambda: world.job(second).status == JobStatus.SUCCEEDED)
    assert (world.job(first).finished_at or 0) <= (world.job(second).started_at or 0)
    third = world.add_job()
    slot.wake()
    wait_for(lambda: world.job(third).status == JobStatus.SUCCEEDED)
    slot.drain()
    assert slot.join(5)


def test_a_slot_finds_work_by_polling(world: World) -> None:
    slot = Slot(world.database, world.storage, world.settings.model_copy(update={"poll_seconds": 0.1}), stand_in())
    slot.start()
    job_id = world.add_job()
    wait_for(lambda: world.job(job_id).status == JobStatus.SUCCEEDED)
    slot.drain()
    assert slot.join(5)


def test_a_slot_outlives_a_database_that_is_away(world: World, tmp_path: Path) -> None:
    where = tmp_path / "later"
    later = Database(f"sqlite:///{where}/hone.db")
    where.rmdir()
    slot = Slot(later, world.storage, world.settings, stand_in())
    slot.start()
    assert not slot.join(0.5)
    slot.drain()
    assert slot.join(5)
    later.dispose()


def test_two_slots_never_share_an_owner(world: World) -> None:
    first, second = (Slot(world.database, world.storage, world.settings) for _ in range(2))
    assert first.owner != second.owner


def test_a_hint_through_valkey_wakes_the_worker_at_once(
    world: World, start_worker: StartWorker, valkey_url: str, tmp_path: Path
) -> None:
    worker = start_worker("steps=1", redis_url=valkey_url, poll_seconds="600")
    wait_for(lambda: "ready." in (tmp_path / "worker.log").read_text())
    job_id = world.add_job()
    began = time.monotonic()
    app = make_celery(Settings(redis_url=valkey_url))
    send_hint(app, job_id)
    wait_for(lambda: world.job(job_id).status != JobStatus.QUEUED, 3)
    assert time.monotonic() - began < 3
    wait_for(lambda: world.job(job_id).status == JobStatus.SUCCEEDED)
    worker.terminate()
    began = time.monotonic()
    assert worker.wait(15) == 0
    assert time.monotonic() - began < 8, "an idle worker ends soon"
    app.close()


def test_a_worker_whose_broker_is_dead_runs_jobs_and_still_ends_on_sigterm(
    world: World, start_worker: StartWorker
) -> None:
    job_id = world.add_job()
    worker = start_worker(redis_url=DEAD_BROKER, poll_seconds="0.1")
    wait_for(lambda: world.job(job_id).status == JobStatus.SUCCEEDED)
    worker.terminate()
    assert worker.wait(10) == 0


@pytest.mark.parametrize("broker", ["dead", "alive"])
def test_sigterm_drains_the_worker_before_it_ends(
    world: World, start_worker: StartWorker, valkey_url: str, broker: str
) -> None:
    job_id = world.add_job()
    url = valkey_url if broker == "alive" else DEAD_BROKER
    worker = start_worker("steps=1000", "pause=0.02", "save=5000", redis_url=url, poll_seconds="0.1")
    wait_for(lambda: world.job(job_id).step > 2)
    child = child_of(worker)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(15) == 0
    job = world.job(job_id)
    assert (job.status, job.attempt, job.lease_owner) == (JobStatus.QUEUED, 0, None)
    assert [row.step for row in world.checkpoints(job_id)] == [job.step]
    assert not child.is_running()


def test_a_killed_workers_child_dies_and_the_next_worker_sweeps_and_goes_on(
    world: World, start_worker: StartWorker
) -> None:
    job_id = world.add_job()
    worker = start_worker("steps=1000", "pause=0.02", "hang", redis_url=DEAD_BROKER)
    wait_for(lambda: len(world.checkpoints(job_id)) > 1)
    child = child_of(worker)
    worker.kill()
    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 5)
    assert list((world.settings.home / "work" / job_id).iterdir())
    world.lose(job_id)
    start_worker("steps=4", redis_url=DEAD_BROKER)
    wait_for(lambda: world.job(job_id).status == JobStatus.SUCCEEDED)
    wait_for(lambda: not (world.settings.home / "work" / job_id).exists())
    assert any(message.startswith("Resumed from the checkpoint") for message in world.messages(job_id))


def test_the_light_worker_imports_neither_torch_nor_fastapi() -> None:
    code = "import sys, worker.app; print(*(sorted({'torch', 'transformers', 'fastapi'} & set(sys.modules))))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
