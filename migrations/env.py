"""Alembic's environment: the URL comes from the caller, or from Hone's settings when `alembic` is called by hand."""

from alembic import context

from core.settings import get_settings
from models.database import Database
from models.tables import metadata

# Any number: the same in every process that migrates. Held on PostgreSQL, so that two containers that start at once
# take turns.
MIGRATION_LOCK = 4_866_526


def run() -> None:
    """Migrate the database on one connection."""
    url = context.config.attributes.get("database_url") or get_settings().resolved_database_url
    database = Database(url)
    try:
        with database.engine.connect() as connection:
            if not database.is_sqlite:
                connection.exec_driver_sql(f"SELECT pg_advisory_lock({MIGRATION_LOCK})")
                connection.commit()
            context.configure(
                connection=connection, target_metadata=metadata, render_as_batch=database.is_sqlite, compare_type=True
            )
            with context.begin_transaction():
                context.run_migrations()
            # The lock goes with the connection.
    finally:
        database.dispose()


run()
