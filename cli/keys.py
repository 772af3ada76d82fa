"""`hone keys`: API keys, straight in the database, so that nobody needs a key to make the first one."""

import contextlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated

import typer
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from cli.console import fail, say
from cli.remote import Json, emit, print_json
from core.errors import AuthenticationError
from core.settings import Settings, get_settings
from models import accounts
from models.database import Database
from models.tables import ApiKey, Project

app = typer.Typer(no_args_is_help=True)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What the key is for; only shown.")] = "unnamed",
    project: Annotated[
        str, typer.Option(help="Project that it opens; made when there is none of that name.")
    ] = "default",
    as_json: Json = False,
) -> None:
    """Make a key and print it, this once: the database keeps only its hash."""
    with _database() as database, database.write() as session:
        found = session.scalar(select(Project).where(Project.name == project).order_by(Project.id).limit(1))
        key = accounts.create_key(session, found or accounts.create_project(session, project), name)
    emit({"key": key, "name": name, "project": project}, as_json, lambda: say(key))


@app.command("list")
def list_keys(as_json: Json = False) -> None:
    """Show every key's id, last characters, age, project and name."""
    with _database() as database, database.read() as session:
        rows = session.execute(select(ApiKey, Project.name).join(Project).order_by(ApiKey.id)).all()
    if as_json:
        print_json([_as_json(key, project) for key, project in rows])
        return
    # Lines and no table: an id that is cut or folded can't be copied into `revoke`.
    for key, project in rows:
        revoked = f"  revoked {_day(key.revoked_at)}" if key.revoked_at is not None else ""
        say(f"{key.id}  {key.hint}  {_day(key.created_at)}  {project}  {key.name}{revoked}")


def _as_json(key: ApiKey, project: str) -> dict[str, str | float | None]:
    return {
        "id": key.id,
        "hint": key.hint,
        "name": key.name,
        "project": project,
        "created_at": key.created_at,
        "revoked_at": key.revoked_at,
    }


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="The key's id, as `hone keys list` shows it.")], as_json: Json = False
) -> None:
    """Refuse a key from now on."""
    with _database() as database, database.write() as session:
        if not accounts.revoke_key(session, key_id):
            raise fail(f"there is no key {key_id}. `hone keys list` shows what there is.")
    emit({"id": key_id, "revoked": True}, as_json, lambda: say(f"{key_id} is refused from now on."))


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


@contextlib.contextmanager
def _database() -> Iterator[Database]:
    database = Database(get_settings().resolved_database_url)
    try:
        yield database
    except SQLAlchemyError as error:
        reason = str(error).splitlines()[0]
        raise fail(f"the database can't be used ({reason}). `hone migrate` makes its tables; is it running?") from error
    finally:
        database.dispose()


def local_key(settings: Settings, first_key: str | None) -> str | None:
    """A key to show on this machine, or None when there is none that works.

    The database can't tell a key again, so the first one is kept in ``HONE_HOME/api-key``, readable by this user alone,
    as other tools keep their credentials. A later start shows it as long as it is accepted.
    """
    path = settings.home / "api-key"
    if first_key is not None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(first_key)
        return first_key
    known = [settings.api_key.get_secret_value()] if settings.api_key else []
    known += [path.read_text(encoding="utf-8").strip()] if path.exists() else []
    return next((key for key in known if _accepted(settings, key)), None)


def _accepted(settings: Settings, key: str) -> bool:
    database = Database(settings.resolved_database_url)
    try:
        with database.read() as session:
            accounts.authenticate(session, key)
    except AuthenticationError:
        return False
    finally:
        database.dispose()
    return True
