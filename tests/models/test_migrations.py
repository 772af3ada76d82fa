"""Migrations on both engines."""

import subprocess
import sys

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect

import migrations
from models.database import Database
from models.tables import metadata


def test_migrations_go_up_down_and_up_again_and_match_the_tables(database_url):
    migrations.downgrade(database_url)
    database = Database(database_url)
    assert set(inspect(database.engine).get_table_names()) <= {"alembic_version"}
    migrations.upgrade(database_url)
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    database.dispose()


def test_migrating_twice_at_once_is_safe(postgres_url):
    migrations.downgrade(postgres_url)
    command = [sys.executable, "-c", "import sys, migrations; migrations.upgrade(sys.argv[1])", postgres_url]
    started = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(60) for process in started] == [0, 0]
    database = Database(postgres_url)
    assert set(inspect(database.engine).get_table_names()) == {*metadata.tables, "alembic_version"}
    database.dispose()
