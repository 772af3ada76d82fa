"""The command `hone`."""

import contextlib
import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

import migrations
from cli import adapters, evals, files, jobs, keys
from cli import doctor as doctor_checks
from cli.console import console, fail, say
from cli.remote import Json, emit
from cli.up import up as run_up
from core.errors import HoneError
from core.settings import Settings
from models import accounts
from models.database import Database

app = typer.Typer(
    help="Fine-tuning as a service that you run yourself.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(keys.app, name="keys", help="API keys, straight in the database.")
app.add_typer(files.app, name="files", help="Datasets: look through them here, and bring them to a Hone.")
app.add_typer(jobs.app, name="jobs", help="Fine-tunes: submit, watch, and change their course.")
app.add_typer(evals.app, name="evals", help="Evaluations: a model's scores beside its base's.")
app.add_typer(adapters.app, name="adapters", help="Trained adapters.")


@app.callback(invoke_without_command=True)
def _hone(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.", is_eager=True)] = False,
) -> None:
    if version:
        say(metadata.version("hone"))
        raise typer.Exit


@app.command()
def up(
    host: Annotated[str | None, typer.Option(help="Address to listen on [HONE_HOST, 127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one [HONE_PORT, 8000].")] = None,
    ready_file: Annotated[
        Path | None, typer.Option(help="When ready, write base_url, api_key and pid into this file, as JSON.")
    ] = None,
) -> None:
    """Serve: API, worker and broker on this machine, until Ctrl-C."""
    given = {name: value for name, value in {"host": host, "port": port}.items() if value is not None}
    settings = _settings(**given)

    def on_ready(base_url: str, first_key: str | None) -> None:
        api_url = base_url.rstrip("/") + "/v1"
        key = keys.local_key(settings, first_key)
        if ready_file is not None:
            _write_ready_file(ready_file, {"base_url": api_url, "api_key": key, "pid": os.getpid()})
        _announce(api_url, key, settings)

    with _errors_told():
        raise typer.Exit(run_up(settings, on_ready=on_ready))


def _announce(api_url: str, key: str | None, settings: Settings) -> None:
    say(f"\nHone serves OpenAI's fine-tuning and evals API at {api_url}\n", style="bold")
    say(f"  export OPENAI_BASE_URL={api_url} OPENAI_API_KEY={key or '<your key>'}\n")
    if key is None:
        say("Keys exist but can't be read again; `hone keys create` makes another.")
    dashboard = api_url.removesuffix("/v1")
    say(f"Any OpenAI client in that shell talks to it; {dashboard} shows it in a browser.")
    say(f"State and logs: {settings.home}. Ctrl-C stops it.")


def _write_ready_file(path: Path, ready: dict[str, Any]) -> None:
    """Write at once and for this user alone: the file holds a key, and a reader must never see half of it."""
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(ready, file)
    unfinished.replace(path)


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for the results; what an earlier demo left there is replaced.")
    ] = Path("demo-out"),
    samples: Annotated[int | None, typer.Option(min=8, help="Samples to train on.")] = None,
    eval_samples: Annotated[int | None, typer.Option(min=1, help="Held-out samples to evaluate on.")] = None,
) -> None:
    """Fine-tune SmolLM2-135M on this Python's own library and evaluate it, start to end, over HTTP."""
    import cli.demo as story  # noqa: PLC0415 - the OpenAI client takes a second to import

    size = story.Size(train=samples or story.TRAIN_SAMPLES, held_out=eval_samples or story.EVAL_SAMPLES)
    raise typer.Exit(story.run(out, size))


@app.command()
def migrate(as_json: Json = False) -> None:
    """Bring the database's schema up to date; on an empty database, store HONE_API_KEY as the first key."""
    settings = _settings()
    with _errors_told():
        migrations.upgrade(settings.resolved_database_url)
        database = Database(settings.resolved_database_url)
        try:
            if settings.api_key is not None:
                with database.write() as session:
                    accounts.ensure_first_key(session, settings.api_key.get_secret_value())
        finally:
            database.dispose()
    emit({"migrated": True}, as_json, lambda: say("The database's schema is up to date."))


@app.command()
def doctor(as_json: Json = False) -> None:
    """Look at everything that Hone needs; exit code 1 when something is missing."""
    checks = doctor_checks.examine(_settings())
    emit([asdict(check) for check in checks], as_json, lambda: console.print(doctor_checks.table(checks)))
    if any(not check.good for check in checks):
        raise typer.Exit(1)


def _settings(**given: Any) -> Settings:
    try:
        return Settings(**given)
    except ValidationError as error:
        wrong = "; ".join(f"HONE_{str(item['loc'][0]).upper()}: {item['msg']}" for item in error.errors())
        raise fail(f"a setting can't be used. {wrong}") from None


@contextlib.contextmanager
def _errors_told() -> Iterator[None]:
    """Turn an error that a user can act on into its message."""
    try:
        yield
    except HoneError as error:
        raise fail(error.message) from error


if __name__ == "__main__":
    app()
