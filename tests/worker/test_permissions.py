"""A run of another project's model: the worker asks whether it may use it when it takes the run."""

from sqlalchemy import delete

from core.settings import Settings
from core.storage import Storage
from models import accounts
from models.database import Database
from models.status import JobStatus
from models.tables import CheckpointPermission
from tests.worker.world import World


def test_a_run_by_permission_works_until_the_permission_is_taken_back(
    database: Database, storage: Storage, settings: Settings, tmp_path
) -> None:
    catalogue = tmp_path / "catalogue.toml"
    catalogue.write_text('[base]\nsource = "folder"\npath = "/nowhere"\n')
    owner = World(database, storage, settings.model_copy(update={"catalogue": catalogue}))
    job_id = owner.add_job()
    owner.attempt().run()
    model = owner.job(job_id).fine_tuned_model
    assert model is not None
    other = World(database, storage, owner.settings)
    with database.write() as session:
        other.project_id = accounts.create_project(session, "other").id
        session.add(CheckpointPermission(job_id=job_id, model=model, project_id=other.project_id))

    permitted = other.add_evaluation(model)
    other.attempt().run()
    assert other.job(permitted).status == JobStatus.SUCCEEDED

    waiting = other.add_evaluation(model)
    with database.write() as session:
        session.execute(delete(CheckpointPermission))
    other.attempt().run()
    failed = other.job(waiting)
    assert (failed.status, failed.error_code, failed.error_param) == (JobStatus.FAILED, "model_not_found", "model")
