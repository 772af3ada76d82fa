"""The life of a job, on both engines: every move, its guard, and its event."""

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from sqlalchemy import func, select

from core.errors import InvalidRequestError, NotFoundError, TrainingError
from core.ids import new_id
from models import lifecycle
from models.accounts import create_project
from models.lifecycle import LeaseLostError
from models.status import ENDED, TRANSITIONS, JobKind, JobStatus
from models.tables import Checkpoint, File, Job, JobEvent, OutboxMessage, Project, StepMetric

LEASE = 60


def submit(database, project_id=None, **values):
    with database.write() as session:
        project_id = project_id or create_project(session, "p").id
        job = Job(id=new_id("ftjob-"), project_id=project_id, kind=JobKind.FINE_TUNE, model="tiny", spec={}, **values)
        return lifecycle.submit(session, job).id


def claim(database, owner="worker", lease=LEASE, gpus=1):
    with database.write() as session:
        return lifecycle.claim(session, owner, lease, gpus)


def job_of(database, job_id):
    with database.read() as session:
        return session.get_one(Job, job_id)


def messages(database, job_id):
    with database.read() as session:
        query = select(JobEvent.message).where(JobEvent.job_id == job_id).order_by(JobEvent.id)
        return list(session.scalars(query))


def test_a_submitted_job_is_queued_with_its_events_and_its_hint(database):
    woken = threading.Event()
    database.on_outbox = woken.set
    job_id = submit(database)
    assert job_of(database, job_id).status == JobStatus.QUEUED
    assert messages(database, job_id) == [f"Created fine-tuning job: {job_id}", "Files validated, job queued"]
    with database.read() as session:
        assert session.scalars(select(OutboxMessage.payload)).all() == [{"job_id": job_id}]
    assert woken.is_set()


def test_a_submit_that_fails_leaves_no_job_no_hint_and_wakes_nobody(database):
    database.on_outbox = lambda: pytest.fail("woken for nothing")
    with pytest.raises(RuntimeError), database.write() as session:
        job = Job(
            id=new_id("ftjob-"), project_id=create_project(session, "p").id, kind=JobKind.FINE_TUNE, model="m", spec={}
        )
        lifecycle.submit(session, job)
        raise RuntimeError
    with database.read() as session:
        for table in (Project, Job, JobEvent, OutboxMessage):
            assert session.scalar(select(func.count()).select_from(table)) == 0


def test_jobs_are_claimed_in_order_of_priority_then_arrival(database):
    first, second = submit(database), submit(database)
    urgent = submit(database, priority=-1)
    assert [claim(database).job_id for _ in range(3)] == [urgent, first, second]
    assert claim(database) is None


def test_a_claim_raises_epoch_and_attempt_and_sets_the_lease_by_the_databases_clock(database):
    job_id = submit(database)
    taken = claim(database, owner="me")
    job = job_of(database, job_id)
    assert (taken.epoch, taken.attempt, job.lease_owner, job.status) == (1, 1, "me", JobStatus.RUNNING)
    assert job.lease_expires_at - job.started_at == pytest.approx(LEASE, abs=1)


def test_workers_that_claim_at_once_never_get_the_same_job(database):
    ids = {submit(database) for _ in range(20)}

    def take(owner):
        return [taken.job_id for taken in iter(lambda: claim(database, str(owner)), None)]

    with ThreadPoolExecutor(8) as pool:
        found = [job_id for taken in pool.map(take, range(8)) for job_id in taken]
    # On PostgreSQL a worker that meets only locked rows goes away empty-handed and polls again.
    found += take("last")
    assert sorted(found) == sorted(ids)


def test_a_heartbeat_renews_the_lease_and_carries_the_cancel(database):
    job_id = submit(database)
    taken = claim(database, lease=1)
    with database.write() as session:
        assert lifecycle.heartbeat(session, taken, LEASE).cancel is False
    assert job_of(database, job_id).lease_expires_at > job_of(database, job_id).started_at + 30
    with database.write() as session:
        lifecycle.cancel(session, session.get_one(Job, job_id))
    with database.write() as session:
        assert lifecycle.heartbeat(session, taken, LEASE).cancel is True


def _stale_writes(job_id):
    checkpoint = Checkpoint(job_id=job_id, step=1, storage_key="k", bytes=1, sha256="0", metrics={})
    return {
        "heartbeat": lambda s, c: lifecycle.heartbeat(s, c, LEASE),
        "write_as": lambda s, c: lifecycle.write_as(s, c, report={"a": 1}),
        "record_step": lambda s, c: lifecycle.record_step(s, c, 1, {"train_loss": 1.0}),
        "record_checkpoint": lambda s, c: lifecycle.record_checkpoint(s, c, checkpoint),
        "rewind": lambda s, c: lifecycle.rewind(s, c, 0),
        "succeed": lambda s, c: lifecycle.succeed(s, c, []),
        "fail": lambda s, c: lifecycle.fail(s, c, TrainingError("no")),
        "confirm_cancelled": lifecycle.confirm_cancelled,
        "hand_back": lambda s, c: lifecycle.hand_back(s, c, "x", count_attempt=True, max_attempts=3),
    }


@pytest.mark.parametrize("write", list(_stale_writes("")))
def test_a_worker_that_was_replaced_can_write_nothing(database, write):
    job_id = submit(database)
    stale = claim(database, "old", lease=-1)
    with database.write() as session:
        assert lifecycle.reap(session, 3) == [job_id]
    claim(database, "new")
    before = job_of(database, job_id)
    with pytest.raises(LeaseLostError), database.write() as session:
        _stale_writes(job_id)[write](session, stale)
    after = job_of(database, job_id)
    columns = Job.__table__.columns.keys()
    assert {name: getattr(after, name) for name in columns} == {name: getattr(before, name) for name in columns}
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(StepMetric)) == 0
        assert session.scalar(select(func.count()).select_from(Checkpoint)) == 0


def test_an_expired_lease_is_taken_back_and_fails_after_the_last_attempt(database):
    job_id = submit(database)
    for attempt in (1, 2):
        assert claim(database, lease=-1).attempt == attempt
        with database.write() as session:
            assert lifecycle.reap(session, 3) == [job_id]
        assert job_of(database, job_id).status == JobStatus.QUEUED
    assert claim(database, lease=-1).attempt == 3
    with database.write() as session:
        assert lifecycle.reap(session, 3) == [job_id]
    job = job_of(database, job_id)
    assert (job.status, job.error_code, job.lease_owner) == (JobStatus.FAILED, "worker_lost", None)
    assert "3 attempts" in job.error_message
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(OutboxMessage)) == 3


def test_reapers_that_look_at_once_take_each_job_once(database):
    ids = {submit(database) for _ in range(10)}
    for _ in ids:
        claim(database, lease=-1)
    together = threading.Barrier(4)

    def look(_):
        together.wait(10)
        with database.write() as session:
            return lifecycle.reap(session, 3)

    with ThreadPoolExecutor(4) as pool:
        taken = [job_id for found in pool.map(look, range(4)) for job_id in found]
    assert sorted(taken) == sorted(ids)
    assert all(sum("stopped answering" in told for told in messages(database, job_id)) == 1 for job_id in ids)


def test_a_live_lease_is_left_alone(database):
    submit(database)
    claim(database)
    with database.write() as session:
        assert lifecycle.reap(session, 3) == []


def test_a_lost_job_whose_cancel_was_asked_for_ends_cancelled(database):
    job_id = submit(database)
    claim(database, lease=-1)
    with database.write() as session:
        lifecycle.cancel(session, session.get_one(Job, job_id))
        lifecycle.reap(session, 3)
    assert job_of(database, job_id).status == JobStatus.CANCELLED


def test_a_crash_counts_as_an_attempt_and_a_stop_does_not(database):
    job_id = submit(database)
    for count, attempts in ((False, 0), (True, 1), (True, 2)):
        taken = claim(database)
        with database.write() as session:
            lifecycle.hand_back(session, taken, "a test", count_attempt=count, max_attempts=3)
        assert (job_of(database, job_id).status, job_of(database, job_id).attempt) == (JobStatus.QUEUED, attempts)
    taken = claim(database)
    with database.write() as session:
        lifecycle.hand_back(session, taken, "a test", count_attempt=True, max_attempts=3)
    assert job_of(database, job_id).error_code == "worker_lost"


def test_cancelling_a_waiting_job_ends_it_at_once_and_twice_is_an_error(database):
    job_id = submit(database)
    with database.write() as session:
        lifecycle.cancel(session, session.get_one(Job, job_id))
    assert job_of(database, job_id).status == JobStatus.CANCELLED
    assert claim(database) is None
    with pytest.raises(InvalidRequestError, match="already been cancelled"), database.write() as session:
        lifecycle.cancel(session, session.get_one(Job, job_id))


def ask(database, request, job_id):
    with database.write() as session:
        request(session, session.get_one(Job, job_id))


def test_a_queued_job_is_paused_at_once_and_resumed_into_the_queue(database):
    job_id = submit(database)
    ask(database, lifecycle.pause, job_id)
    ask(database, lifecycle.pause, job_id)  # as a client that lost its answer
    assert job_of(database, job_id).status == JobStatus.PAUSED
    assert claim(database) is None
    ask(database, lifecycle.resume, job_id)
    ask(database, lifecycle.resume, job_id)
    assert job_of(database, job_id).status == JobStatus.QUEUED
    assert claim(database).attempt == 1
    assert messages(database, job_id)[2:] == ["Job paused", "Job resumed", "Job started"]
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(OutboxMessage)) == 2


def test_a_paused_job_can_be_cancelled_and_an_ended_one_neither_paused_nor_resumed(database):
    job_id = submit(database)
    ask(database, lifecycle.pause, job_id)
    ask(database, lifecycle.cancel, job_id)
    assert job_of(database, job_id).status == JobStatus.CANCELLED
    for request, told in ((lifecycle.pause, "can't be paused"), (lifecycle.resume, "can't be resumed")):
        with pytest.raises(InvalidRequestError, match=f"already been cancelled and {told}"):
            ask(database, request, job_id)


def test_a_running_job_is_paused_by_its_worker_and_no_attempt_is_counted(database):
    job_id = submit(database)
    taken = claim(database)
    ask(database, lifecycle.pause, job_id)
    assert job_of(database, job_id).status == JobStatus.RUNNING
    with database.write() as session:
        assert lifecycle.heartbeat(session, taken, LEASE) == lifecycle.Orders(cancel=False, pause=True)
    with database.write() as session:
        lifecycle.hand_back(session, taken, "x", count_attempt=False, max_attempts=1)
    job = job_of(database, job_id)
    assert (job.status, job.attempt, job.lease_owner, job.pause_requested_at) == (JobStatus.PAUSED, 0, None, None)
    assert messages(database, job_id)[-2:] == ["Pause requested", "Job paused"]
    with pytest.raises(LeaseLostError), database.write() as session:
        lifecycle.succeed(session, taken, [])


def test_a_pause_that_is_withdrawn_before_the_worker_lets_go_leads_back_to_the_queue(database):
    job_id = submit(database)
    taken = claim(database)
    ask(database, lifecycle.pause, job_id)
    ask(database, lifecycle.resume, job_id)
    with database.write() as session:
        lifecycle.hand_back(session, taken, "its pause was withdrawn", count_attempt=False, max_attempts=3)
    assert (job_of(database, job_id).status, job_of(database, job_id).attempt) == (JobStatus.QUEUED, 0)
    told = ["Pause requested", "Pause withdrawn", "Job queued again: its pause was withdrawn"]
    assert messages(database, job_id)[-3:] == told


def test_a_cancel_counts_for_more_than_a_pause_whichever_comes_first(database):
    for first, second in ((lifecycle.pause, lifecycle.cancel), (lifecycle.cancel, lifecycle.pause)):
        job_id = submit(database)
        taken = claim(database)
        ask(database, first, job_id)
        if second is lifecycle.pause:
            with pytest.raises(InvalidRequestError, match="is being cancelled"):
                ask(database, second, job_id)
        else:
            ask(database, second, job_id)
        with database.write() as session:
            lifecycle.hand_back(session, taken, "x", count_attempt=False, max_attempts=3)
        assert job_of(database, job_id).status == JobStatus.CANCELLED


def test_a_lost_job_whose_pause_was_asked_for_ends_paused_until_its_attempts_are_used_up(database):
    job_id = submit(database)
    for attempt in (1, 2):
        assert claim(database, lease=-1).attempt == attempt
        ask(database, lifecycle.pause, job_id)
        with database.write() as session:
            assert lifecycle.reap(session, 2) == [job_id]
        if attempt == 1:
            assert job_of(database, job_id).status == JobStatus.PAUSED
            assert messages(database, job_id)[-1] == "Job paused: its worker stopped answering"
            ask(database, lifecycle.resume, job_id)
    assert job_of(database, job_id).error_code == "worker_lost"


def _finish(session, taken):
    lifecycle.succeed(session, taken, [])


def _let_go(session, taken):
    lifecycle.hand_back(session, taken, "x", count_attempt=False, max_attempts=3)


def _lose(session, taken):
    lifecycle.reap(session, 3)


def _at_once(acts):
    """Do all of these at once; who comes too late is refused."""
    together = threading.Barrier(len(acts))

    def act(work):
        together.wait(10)
        with contextlib.suppress(LeaseLostError, InvalidRequestError):
            work()

    with ThreadPoolExecutor(len(acts)) as pool:
        list(pool.map(act, acts))


@pytest.mark.parametrize("others", [(_finish,), (_let_go, _lose), (_lose, _finish)])
@pytest.mark.parametrize("request_", [lifecycle.cancel, lifecycle.resume])
def test_a_pause_that_races_has_one_outcome_and_the_events_tell_it(database, others, request_):
    for _ in range(4):
        job_id = submit(database)
        taken = claim(database, lease=-1)
        requests = [partial(ask, database, request, job_id) for request in (lifecycle.pause, request_)]
        _at_once([*requests, *(partial(_write, database, other, taken) for other in others)])
        status = job_of(database, job_id).status
        told = messages(database, job_id)
        last = next(message for message in reversed(told) if message.startswith(tuple(_MOVES)))
        assert status == next(to for start, to in _MOVES.items() if last.startswith(start))
        assert sum(message in ("Job cancelled", "The job has successfully completed") for message in told) == (
            status in ENDED
        )
        if status == JobStatus.QUEUED:  # out of the next round's way
            ask(database, lifecycle.cancel, job_id)


#: Where each event leads to, by how it begins.
_MOVES = {
    "Job started": JobStatus.RUNNING,
    "Job paused": JobStatus.PAUSED,
    "Job resumed": JobStatus.QUEUED,
    "Job queued again": JobStatus.QUEUED,
    "Job cancelled": JobStatus.CANCELLED,
    "The job has successfully completed": JobStatus.SUCCEEDED,
}


def _write(database, work, taken):
    with database.write() as session:
        work(session, taken)


def test_a_job_that_ended_has_exactly_one_end(database):
    job_id = submit(database)
    taken = claim(database)
    with database.write() as session:
        lifecycle.succeed(session, taken, [], trained_tokens=5)
    for end in (lifecycle.confirm_cancelled, lambda s, c: lifecycle.fail(s, c, TrainingError("late"))):
        with pytest.raises(LeaseLostError), database.write() as session:
            end(session, taken)
    job = job_of(database, job_id)
    assert (job.status, job.trained_tokens, job.error_code) == (JobStatus.SUCCEEDED, 5, None)


def test_artifacts_status_and_event_become_visible_together(database):
    job_id = submit(database)
    taken = claim(database)
    project_id = job_of(database, job_id).project_id
    artifact = File(
        project_id=project_id, filename="a.zip", purpose="fine-tune-results", bytes=1, sha256="0", storage_key="k",
        job_id=job_id,
    )  # fmt: skip
    with pytest.raises(RuntimeError), database.write() as session:
        lifecycle.succeed(session, taken, [artifact])
        raise RuntimeError
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(File)) == 0
    assert job_of(database, job_id).status == JobStatus.RUNNING


def test_a_step_is_stored_once_and_a_rewind_drops_what_will_come_again(database):
    job_id = submit(database)
    taken = claim(database)
    with database.write() as session:
        for step in (1, 2, 3):
            lifecycle.record_step(session, taken, step, {"train_loss": float(step)}, total_steps=9)
        lifecycle.record_step(session, taken, 3, {"valid_loss": 0.5})
    with database.read() as session:
        last = session.get_one(StepMetric, (job_id, 3))
        assert (last.train_loss, last.valid_loss) == (3.0, 0.5)
    with database.write() as session:
        lifecycle.rewind(session, taken, 1)
    with database.read() as session:
        assert session.scalars(select(StepMetric.step)).all() == [1]
    assert (job_of(database, job_id).step, job_of(database, job_id).total_steps) == (1, 9)


def test_a_checkpoint_of_a_later_attempt_replaces_the_earlier_one(database):
    job_id = submit(database)
    taken = claim(database)
    for key in ("first", "second"):
        with database.write() as session:
            made = Checkpoint(job_id=job_id, step=4, storage_key=key, bytes=1, sha256="0", metrics={})
            lifecycle.record_checkpoint(session, taken, made)
    with database.read() as session:
        assert lifecycle.last_checkpoint(session, job_id).storage_key == "second"


def test_another_projects_job_is_not_found(database):
    job_id = submit(database)
    with database.write() as session:
        other = create_project(session, "other").id
    with database.read() as session, pytest.raises(NotFoundError):
        lifecycle.get_job(session, other, job_id, JobKind.FINE_TUNE)
    with database.read() as session, pytest.raises(NotFoundError):
        lifecycle.get_job(session, job_of(database, job_id).project_id, job_id, JobKind.EVALUATION)


@pytest.mark.parametrize("source", list(JobStatus))
@pytest.mark.parametrize("target", list(JobStatus))
def test_a_job_moves_along_the_graph_and_nowhere_else(sqlite_url, source, target):
    from models.database import Database

    database = Database(sqlite_url)
    job_id = submit(database)
    with database.write() as session:
        session.get_one(Job, job_id).status = source
    with database.write() as session:
        moved = lifecycle._move(session, job_id, target)
    assert moved == (target in TRANSITIONS[source])
    assert job_of(database, job_id).status == (target if moved else source)
    database.dispose()


def test_an_evaluations_answers_are_kept_under_the_epoch_until_it_has_ended(database):
    job_id = submit(database)
    first = claim(database)
    answer = {"text": "x", "tokens": 1, "finish_reason": "stop"}
    with database.write() as session:
        lifecycle.keep_answer(session, first, "base", 3, {"text": "old"})
        lifecycle.keep_answer(session, first, "base", 3, answer)  # told twice: the later one counts
        lifecycle.keep_answer(session, first, "model", 1, answer)
        lifecycle.keep_grades(session, first, "base", 3, [{"score": 0.1}])
        lifecycle.keep_grades(session, first, "base", 4, [{"score": 0.1}])  # no such answer
        lifecycle.hand_back(session, first, "of the test", count_attempt=True, max_attempts=3)
    second = claim(database)
    with pytest.raises(LeaseLostError), database.write() as session:
        lifecycle.keep_answer(session, first, "model", 2, answer)
    with pytest.raises(LeaseLostError), database.write() as session:
        lifecycle.keep_grades(session, first, "model", 1, [])
    with database.read() as session:
        rows = [(row.side, row.position, row.answer, row.grades) for row in lifecycle.kept_answers(session, job_id)]
    assert rows == [("base", 3, answer, {"grades": [{"score": 0.1}]}), ("model", 1, answer, None)]
    with database.write() as session:
        lifecycle.fail(session, second, TrainingError("no"))
    with database.read() as session:
        assert lifecycle.kept_answers(session, job_id) == []


def test_a_worker_leaves_a_job_that_asks_for_more_gpus_to_others(database):
    large, small = submit(database, gpus=2), submit(database)
    assert claim(database).job_id == small
    assert claim(database) is None
    assert claim(database, gpus=2).job_id == large
