"""Sessions and keys on both engines."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError, OperationalError

from core.errors import AuthenticationError
from models import accounts
from models.base import db_now
from models.database import Database
from models.tables import ApiKey, File, Project


def test_a_connection_that_died_while_idle_is_replaced_before_it_is_used(postgres_url, monkeypatch):
    monkeypatch.setattr("models.database._TRUSTED_SECONDS", 0)
    database = Database(postgres_url)
    other = Database(postgres_url)
    with database.read() as session:
        pid = session.scalar(text("SELECT pg_backend_pid()"))
    with other.write() as session:
        session.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
    with database.read() as session:
        assert session.scalar(text("SELECT pg_backend_pid()")) != pid
    database.dispose()
    other.dispose()


def test_a_block_that_raises_changes_nothing(database):
    with pytest.raises(RuntimeError), database.write() as session:
        session.add(Project(name="x"))
        session.flush()
        raise RuntimeError
    with database.read() as session:
        assert session.scalars(select(Project)).all() == []


def test_writers_that_meet_wait_instead_of_failing(database):
    """A read that turns into a write fails at once on SQLite; ``write()`` takes the lock at its start."""
    with database.write() as session:
        project_id = accounts.create_project(session, "0").id
    barrier = threading.Barrier(8)

    def add_one(_):
        barrier.wait()
        for _ in range(10):
            with database.write() as session:
                project = session.get_one(Project, project_id, with_for_update=True)
                project.name = str(int(project.name) + 1)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add_one, range(8)))
    with database.read() as session:
        assert session.get_one(Project, project_id).name == "80"


def test_readers_do_not_wait_for_a_writer(database):
    with database.write() as writer:
        writer.add(Project(name="x"))
        writer.flush()
        with database.read() as reader:
            assert reader.scalars(select(Project)).all() == []


def test_every_thread_of_the_api_gets_a_connection_at_once(postgres_url):
    database = Database(postgres_url)
    together = threading.Barrier(43)

    def read(_):
        with database.read() as session:
            session.scalar(text("SELECT 1"))
            together.wait(20)

    with ThreadPoolExecutor(43) as pool:
        list(pool.map(read, range(43)))
    database.dispose()


def test_a_database_that_does_not_answer_is_told_within_seconds():
    """The port accepts and then says nothing, as a server behind a dead host does."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        database = Database(f"postgresql+psycopg://u:p@127.0.0.1:{listener.getsockname()[1]}/d")
        began = time.monotonic()
        with pytest.raises(OperationalError):
            database.ping()
        assert time.monotonic() - began < 8


def test_dead_connections_are_noticed_unless_the_url_says_otherwise(postgres_url):
    def options(url):
        database = Database(url)
        with database.engine.connect() as connection:
            found = connection.connection.driver_connection.info.get_parameters()
        database.dispose()
        return found

    found = options(postgres_url)
    assert (found["connect_timeout"], found["tcp_user_timeout"]) == ("5", "30000")
    assert (found["keepalives_idle"], found["keepalives_interval"], found["keepalives_count"]) == ("30", "10", "3")
    joint = "&" if "?" in postgres_url else "?"
    found = options(f"{postgres_url}{joint}tcp_user_timeout=60000")
    assert (found["connect_timeout"], found["tcp_user_timeout"]) == ("5", "60000")


def test_foreign_keys_hold(database):
    with pytest.raises(IntegrityError), database.write() as session:
        session.add(File(project_id="nobody", filename="f", purpose="p", bytes=0, sha256="", storage_key="k"))


def test_the_databases_clock_is_now_and_has_fractions(database):
    with database.read() as session:
        before, reading, after = time.time(), session.scalar(select(db_now())), time.time()
    assert before - 1 < reading < after + 1
    assert isinstance(reading, float)


def test_json_none_is_a_null_of_the_database(database):
    with database.write() as session:
        project = accounts.create_project(session, "p")
        session.add(
            File(project_id=project.id, filename="f", purpose="p", bytes=0, sha256="", storage_key="k", report=None)
        )
    with database.read() as session:
        assert session.scalar(text("SELECT count(*) FROM files WHERE report IS NULL")) == 1


def test_a_key_opens_its_project_and_is_kept_only_as_a_hash(database):
    with database.write() as session:
        project = accounts.create_project(session, "p")
        key = accounts.create_key(session, project, "k")
    with database.read() as session:
        assert accounts.authenticate(session, key) == project.id
        row = session.scalars(select(ApiKey)).one()
        columns = ApiKey.__table__.columns.keys()
        assert key not in str([getattr(row, name) for name in columns])


@pytest.mark.parametrize("wrong", ["", "hone-", "hone-wrong", "\0", "\ud800", "x" * 10_000, "'; DROP TABLE jobs; --"])
def test_a_wrong_key_is_refused_whatever_it_is(database, key, wrong):
    with database.read() as session, pytest.raises(AuthenticationError):
        accounts.authenticate(session, wrong)


def test_a_revoked_key_opens_nothing(database, key):
    with database.write() as session:
        assert accounts.revoke_key(session, session.scalars(select(ApiKey.id)).one())
    with database.read() as session, pytest.raises(AuthenticationError):
        accounts.authenticate(session, key)


def test_the_first_key_is_made_once(database):
    with database.write() as session:
        assert accounts.ensure_first_key(session, "hone-given-by-the-operator") == "hone-given-by-the-operator"
    with database.write() as session:
        assert accounts.ensure_first_key(session, "hone-another") is None
    with database.read() as session:
        assert accounts.authenticate(session, "hone-given-by-the-operator")
