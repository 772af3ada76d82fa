"""What a job survives: parts of a running `hone up` are killed, and it still ends as if nothing had been."""

import csv
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob

from tests.e2e.service import ENDED, Service, log_of, served, tiny_options, train_lines, wait_for, write_catalogue

#: Steps of the jobs. One takes some 30 ms on a busy core, so that each death finds the job far from its end.
MANY_STEPS = 200
SAVE_STEPS = 20
#: Short, so that a dead worker is noticed within some 4 s.
SETTINGS = {
    "HONE_HEARTBEAT_SECONDS": "0.5",
    "HONE_LEASE_SECONDS": "3",
    "HONE_REAP_SECONDS": "0.5",
    "HONE_POLL_SECONDS": "0.5",
    "HONE_CANCEL_GRACE_SECONDS": "10",
}
CANCELLED_WITHIN = 15
Start = Callable[[], Service]


@pytest.fixture
def start(tmp_path: Path, tiny_llama: Path) -> Iterator[Start]:
    """Starts `hone up`, each time in the same home."""
    catalogue, running = write_catalogue(tmp_path, tiny_llama), []

    def enter() -> Service:
        running.append(served(tmp_path / "home", catalogue, **SETTINGS))
        return running[-1].__enter__()

    yield enter
    for context in running:
        context.__exit__(None, None, None)


def submit(client: OpenAI) -> str:
    """A job of many steps and checkpoints; its id."""
    train = client.files.create(file=("train.jsonl", train_lines(48)), purpose="fine-tune")
    options = tiny_options(max_steps=MANY_STEPS, save_steps=SAVE_STEPS, eval_steps=60, microbatch_size=4)
    return client.fine_tuning.jobs.create(
        model="tiny", training_file=train.id, hyperparameters={"n_epochs": 50, "batch_size": 4}, extra_body=options
    ).id


def progress_of(job: FineTuningJob) -> dict[str, Any]:
    return job.model_extra["hone"]["progress"]


def steps_of(client: OpenAI, job_id: str) -> list[dict[str, Any]]:
    page: Any = client.get(f"/fine_tuning/jobs/{job_id}/metrics", cast_to=object)
    return list(page["data"])


def wait_for_checkpoint(service: Service, job_id: str, attempt: int) -> int:
    """Wait until this attempt has stored a checkpoint of its own; the newest one's step."""
    client, found = service.client(), [0]

    def stored() -> bool:
        job = client.fine_tuning.jobs.retrieve(job_id)
        assert job.status not in ENDED, (job.status, job.error, log_of(service, "worker"))
        checkpoints = client.fine_tuning.jobs.checkpoints.list(job_id, limit=1).data
        found[0] = checkpoints[0].step_number if checkpoints else 0
        # The attempt before may have stored another one since it was looked at; whose it is, the step's row tells.
        attempts = {step["step"]: step["attempt"] for step in steps_of(client, job_id)}
        return bool(checkpoints) and attempts.get(found[0]) == attempt

    wait_for(stored, 60)
    return found[0]


def checkpoint_after(service: Service, job_id: str, step: int) -> int:
    """Wait until a later step's checkpoint than the pause's is stored; the newest one's step."""
    checkpoints = service.client().fine_tuning.jobs.checkpoints
    paused_at = max(checkpoints.list(job_id, limit=1).data[0].step_number, step)
    wait_for(lambda: checkpoints.list(job_id, limit=1).data[0].step_number > paused_at, 60)
    return checkpoints.list(job_id, limit=1).data[0].step_number


def wait_for_end(service: Service, job_id: str, seconds: float = 60) -> FineTuningJob:
    jobs = service.client().fine_tuning.jobs
    wait_for(lambda: jobs.retrieve(job_id).status in ENDED, seconds)
    return jobs.retrieve(job_id)


def kill_training(service: Service) -> None:
    victim = service.part("training")
    assert victim is not None
    victim.kill()
    victim.wait(10)


def messages_of(client: OpenAI, job_id: str) -> list[str]:
    """What the job told besides its metrics, oldest first."""
    events = client.fine_tuning.jobs.list_events(job_id, limit=100)
    return [event.message for event in events if event.type == "message"][::-1]


def assert_whole(client: OpenAI, job: FineTuningJob) -> None:
    """Every step is there once, as a single run would have written it."""
    steps = steps_of(client, job.id)
    assert [step["step"] for step in steps] == list(range(MANY_STEPS + 1))
    attempts = [step["attempt"] for step in steps]
    assert attempts == sorted(attempts), "a later attempt goes on where the one before ended"
    # The last attempt wrote the CSV, earlier steps from its checkpoint's memory: both tell of the same run.
    rows = list(csv.DictReader(io.StringIO(client.files.content(job.result_files[0]).text)))
    assert [int(row["step"]) for row in rows] == list(range(1, MANY_STEPS + 1))
    assert [float(row["train_loss"]) for row in rows] == [step["train_loss"] for step in steps[1:]]
    checkpoints = [checkpoint.step_number for checkpoint in client.fine_tuning.jobs.checkpoints.list(job.id)]
    assert checkpoints == list(range(MANY_STEPS, 0, -SAVE_STEPS))


def test_a_job_survives_the_death_of_its_child_its_worker_and_the_broker(start: Start) -> None:
    service = start()
    client = service.client()
    job_id = submit(client)

    first = wait_for_checkpoint(service, job_id, attempt=1)
    kill_training(service)

    second = wait_for_checkpoint(service, job_id, attempt=2)
    orphan = service.part("training")
    service.kill("worker")
    assert orphan is not None
    orphan.wait(5)  # it dies with its worker, which can't stop it any more

    third = wait_for_checkpoint(service, job_id, attempt=3)
    service.kill("valkey")

    job = wait_for_end(service, job_id)
    assert job.status == "succeeded", (job.error, messages_of(client, job_id), log_of(service, "worker"))
    assert progress_of(job) == {"step": MANY_STEPS, "total_steps": MANY_STEPS, "attempt": 3}
    assert_whole(client, job)
    messages = messages_of(client, job_id)
    told = [message for message in messages if message.startswith(("Job queued again", "Job started", "Resumed"))]
    resumed = [int(message.rsplit(" ", 1)[1]) for message in told if message.startswith("Resumed")]
    assert told == [
        "Job started",
        "Job queued again: its process was killed by signal 9 (out of memory?)",
        "Job started again, attempt 2",
        f"Resumed from the checkpoint at step {resumed[0]}",
        "Job queued again: its worker stopped answering",
        "Job started again, attempt 3",
        f"Resumed from the checkpoint at step {resumed[1]}",
    ]
    assert first <= resumed[0] < second <= resumed[1] < third
    service.stop()


def test_a_running_job_is_paused_cancelled_or_handed_on_by_a_stop_and_a_start(start: Start) -> None:
    service = start()
    client = service.client()

    handed_on = submit(client)
    first = wait_for_checkpoint(service, handed_on, attempt=1)
    child = service.part("training")
    assert child is not None
    client.fine_tuning.jobs.pause(handed_on)
    wait_for(lambda: client.fine_tuning.jobs.retrieve(handed_on).status == "paused", CANCELLED_WITHIN)
    assert not child.is_running()

    cancelled = submit(client)  # gets the worker that the other has left
    wait_for_checkpoint(service, cancelled, attempt=1)
    child = service.part("training")
    assert child is not None
    began = time.monotonic()
    client.fine_tuning.jobs.cancel(cancelled)
    job = wait_for_end(service, cancelled, CANCELLED_WITHIN)
    assert job.status == "cancelled"
    assert time.monotonic() - began < CANCELLED_WITHIN
    child.wait(1)
    assert job.fine_tuned_model is None
    assert job.result_files == []
    messages = messages_of(client, cancelled)
    assert "Cancellation requested" in messages
    assert messages[-1] == "Job cancelled"

    client.fine_tuning.jobs.resume(handed_on)
    stored = checkpoint_after(service, handed_on, first)
    service.stop()
    service = start()
    client = service.client()
    job = wait_for_end(service, handed_on)
    assert job.status == "succeeded", (job.error, messages_of(client, handed_on), log_of(service, "worker"))
    assert progress_of(job)["attempt"] == 1, "neither a pause nor being told to stop is a failure"
    assert [step["step"] for step in steps_of(client, handed_on)] == list(range(MANY_STEPS + 1))
    messages = messages_of(client, handed_on)
    moves = ["Pause requested", "Job paused", "Job resumed", "Job queued again: its worker was told to stop"]
    assert [message for message in messages if message in moves] == moves
    resumed = [int(message.rsplit(" ", 1)[1]) for message in messages if message.startswith("Resumed")]
    assert first <= resumed[0] < stored <= resumed[1]
    assert client.fine_tuning.jobs.retrieve(cancelled).status == "cancelled"
    service.stop()
