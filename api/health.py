"""/healthz: the process is up. /readyz: the parts that it needs answer. Neither needs a key."""

from typing import Literal

from alembic.script import ScriptDirectory
from fastapi import APIRouter, Response
from kombu.exceptions import OperationalError as BrokerError
from obstore.exceptions import BaseError as StorageError
from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

import migrations
from api.deps import Parts, PartsDep
from core.storage import Storage
from models.database import Database

router = APIRouter(tags=["health"])

#: Seconds that the broker gets to answer.
_BROKER_TIMEOUT = 2


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """``degraded``: the broker is away; jobs still run, because workers poll the database."""

    status: Literal["ready", "degraded", "unavailable"]
    checks: dict[str, str]


@router.get("/healthz")
async def healthz() -> Health:
    """Whether the process is up."""
    return Health()


@router.get("/readyz")
def readyz(parts: PartsDep, response: Response) -> Readiness:
    """Whether requests can be served: 503 when the database, its schema or the storage is not as it must be."""
    checks = {
        "database": _check_database(parts.database),
        "schema": _check_schema(parts),
        "storage": _check_storage(parts.storage),
        "broker": _check_broker(parts),
    }
    needed = [checks[name] for name in ("database", "schema", "storage")]
    if any(found != "ok" for found in needed):
        response.status_code = 503
        return Readiness(status="unavailable", checks=checks)
    return Readiness(status="ready" if checks["broker"] == "ok" else "degraded", checks=checks)


def _check_database(database: Database) -> str:
    try:
        database.ping()
    except SQLAlchemyError:
        return "does not answer"
    return "ok"


def _check_schema(parts: Parts) -> str:
    config = migrations.config(parts.settings.resolved_database_url)
    head = ScriptDirectory.from_config(config).get_current_head()
    try:
        with parts.database.read() as session:
            found = session.scalar(text("SELECT version_num FROM alembic_version"))
    except SQLAlchemyError:
        found = None
    return "ok" if found == head else f"is at revision {found}, this version needs {head}: run the migrations"


def _check_storage(storage: Storage) -> str:
    try:
        storage.get("readyz")
    except FileNotFoundError:
        return "ok"  # it answered that there is no such object
    except (StorageError, OSError):
        return "does not answer"
    return "ok"


def _check_broker(parts: Parts) -> str:
    try:
        with parts.celery.connection_for_write(connect_timeout=_BROKER_TIMEOUT) as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=_BROKER_TIMEOUT)
    except (BrokerError, OSError):
        return "does not answer; workers find jobs by polling the database"
    return "ok"
