from sqlalchemy import func, select, text
from starlette.testclient import TestClient

from models.database import Database
from models.tables import Job
from tests.api.driving import error_of, upload
from tests.waiting import wait_for

# Statements that make the commit itself fail, after every other statement has gone well.
_POSTGRES = [
    "CREATE FUNCTION refuse() RETURNS trigger AS $$ BEGIN RAISE EXCEPTION 'no commit'; END $$ LANGUAGE plpgsql",
    "CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON jobs DEFERRABLE INITIALLY DEFERRED "
    "FOR EACH ROW EXECUTE FUNCTION refuse()",
]
_SQLITE = [
    "CREATE TABLE broken (id TEXT REFERENCES projects (id) DEFERRABLE INITIALLY DEFERRED)",
    "CREATE TRIGGER refuse AFTER INSERT ON jobs BEGIN INSERT INTO broken VALUES ('nobody'); END",
]


def test_a_commit_that_fails_is_an_error_and_not_a_200(http: TestClient, database: Database):
    file_id = upload(http)
    with database.write() as session:
        for statement in _SQLITE if database.is_sqlite else _POSTGRES:
            session.execute(text(statement))

    answer = http.post("/v1/fine_tuning/jobs", json={"model": "tiny", "training_file": file_id})

    assert answer.status_code == 500
    told = error_of(answer)
    assert told["code"] == "internal_error"
    assert answer.headers["x-request-id"] in told["message"]
    assert "no commit" not in answer.text
    assert "FOREIGN KEY" not in answer.text
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 0


def test_a_revoked_key_opens_nothing(http: TestClient, database: Database):
    assert http.get("/v1/files").status_code == 200
    with database.write() as session:
        session.execute(text("UPDATE api_keys SET revoked_at = 1"))
    wait_for(lambda: http.get("/v1/files").status_code == 401, seconds=3)  # it was remembered for a second
    answer = http.get("/v1/files")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert error_of(answer)["type"] == "authentication_error"


def test_the_key_is_looked_at_before_an_upload_is_read(http: TestClient):
    # Not even a form: with a wrong key nothing of the body matters.
    answer = http.post("/v1/files", content=b"x" * 1000, headers={"Authorization": "Bearer hone-wrong"})
    assert answer.status_code == 401
