"""Places in the queue, on both databases."""

from sqlalchemy import update

from core.ids import new_id
from models import accounts, lifecycle, waiting_line
from models.database import Database
from models.status import JobKind
from models.tables import Job


def test_places_are_those_in_which_workers_take_the_jobs(database: Database):
    with database.write() as session:
        project = accounts.create_project(session, "first")
        ids = [new_id("ftjob-") for _ in range(4)]
        for job_id in ids:
            job = Job(id=job_id, project_id=project.id, kind=JobKind.FINE_TUNE, model="tiny", spec={})
            lifecycle.submit(session, job)
    with database.write() as session:
        taken = lifecycle.claim(session, "worker", 60)
        assert taken is not None
        assert taken.job_id == ids[0]
        session.execute(update(Job).where(Job.id == ids[3]).values(priority=-1))
        assert waiting_line.places(session, [*ids, "ftjob-none"]) == {ids[3]: 1, ids[1]: 2, ids[2]: 3}
        assert waiting_line.places(session, []) == {}
