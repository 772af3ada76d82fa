"""`hone files`: look through a dataset here, and bring files to a Hone."""

import io
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from openai import OpenAI, omit
from openai.types import FileObject, FilePurpose
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from cli.check import check_dataset, show_report
from cli.console import console, say
from cli.exits import Exit
from cli.remote import Json, emit, errors_told, is_quiet, lines, print_json, refuse
from core.errors import HoneError
from core.specs import PromptTemplate

app = typer.Typer(no_args_is_help=True)

#: Above this, a file goes in parts, as OpenAI's own client sends it.
_WHOLE_BYTES = 64 * 2**20
_POLL_SECONDS = 0.5


@app.command()
def check(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="JSON lines, JSON, CSV or Parquet.")],
    model: Annotated[str | None, typer.Option(help="Count tokens as this base model of the catalogue does.")] = None,
    template: Annotated[str, typer.Option(help="auto, chat, llama2, alpaca or none.")] = "auto",
    max_seq_length: Annotated[int | None, typer.Option(min=16, help="Where samples are cut.")] = None,
    validation: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Look for samples of this file as well.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Look through a dataset on this machine; needs no Hone. Exit code 6 when a line can't be used."""
    if template not in ("auto", "chat", "llama2", "alpaca", "none"):
        raise typer.BadParameter("use auto, chat, llama2, alpaca or none", param_hint="--template")
    chosen = None if template == "auto" else cast(PromptTemplate, template)
    with _bar(is_quiet(as_json)) as bar:
        task = bar.add_task(file.name, total=file.stat().st_size)
        try:
            report = check_dataset(
                file,
                model,
                chosen,
                max_seq_length or "auto",
                validation,
                lambda read, _: bar.update(task, completed=read),
            )
        except HoneError as error:
            raise refuse(error.message) from None
    emit(report, as_json, lambda: show_report(file.name, report))
    if report["problems"]["count"] or not report["samples"]:
        raise typer.Exit(Exit.BAD_DATASET)


@app.command()
def upload(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    purpose: Annotated[str, typer.Option(help="fine-tune or evals.")] = "fine-tune",
    as_json: Json = False,
) -> None:
    """Upload a file and print its id; the server checks a dataset on the way in."""
    with errors_told() as client:
        made = send(client, file, purpose, quiet=is_quiet(as_json))
    emit(made, as_json, lambda: say(made.id))


@app.command("import")
def import_dataset(
    dataset: Annotated[str, typer.Argument(help="A dataset of the Hugging Face Hub: owner/name.")],
    split: Annotated[str, typer.Option(help="Which split.")] = "train",
    config: Annotated[str | None, typer.Option(help="Which configuration (subset), where there are several.")] = None,
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit; else the newest.")] = None,
    purpose: Annotated[str, typer.Option(help="fine-tune or evals.")] = "fine-tune",
    column: Annotated[
        list[str] | None, typer.Option(help="FIELD=COLUMN, such as prompt=question; once for each.")
    ] = None,
    skip_bad_rows: Annotated[bool, typer.Option(help="Leave out rows that can't be used.")] = False,
    as_json: Json = False,
) -> None:
    """Have the server import a dataset by its id, and print the new file's id. Needs its operator's permission."""
    asked = {
        "dataset": dataset,
        "config": config,
        "split": split,
        "revision": revision,
        "purpose": purpose,
        "columns": _columns(column or []),
        "skip_bad_rows": skip_bad_rows,
    }
    with errors_told() as client:
        made = _imported(client, asked, quiet=is_quiet(as_json))
        error = made["error"]
        if made["status"] != "completed":
            if as_json:
                print_json(made)
            is_bad_data = bool(error and error["code"] == "invalid_file_format")
            reason = error["message"] if error else f"the import was {made['status']}"
            raise refuse(reason, Exit.BAD_DATASET if is_bad_data else Exit.REFUSED)
        file = client.files.retrieve(made["file_id"])
    emit(file, as_json, lambda: say(file.id))


def _columns(given: list[str]) -> dict[str, str]:
    pairs = [entry.partition("=") for entry in given]
    if any(not (field and column) for field, _, column in pairs):
        raise typer.BadParameter("write FIELD=COLUMN, such as prompt=question", param_hint="--column")
    return {field: column for field, _, column in pairs}


def _imported(client: OpenAI, asked: dict[str, Any], *, quiet: bool) -> dict[str, Any]:
    """The import once it has ended; it goes on when this is interrupted."""
    made: Any = client.post("/files/imports", cast_to=object, body=asked)
    with _bar(quiet) as bar:
        task = bar.add_task(asked["dataset"], total=None)
        while made["status"] in ("queued", "running"):
            progress = made["progress"]
            bar.update(task, completed=progress["bytes"], total=progress["total_bytes"] or None)
            time.sleep(_POLL_SECONDS)
            made = client.get(f"/files/imports/{made['id']}", cast_to=object)
    return dict(made)


@app.command("ls")
def list_files(
    purpose: Annotated[str | None, typer.Option(help="Only files of this purpose.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="The newest so many.")] = 50,
    as_json: Json = False,
) -> None:
    """List the project's files, newest first."""
    with errors_told() as client:
        page = client.files.list(limit=limit, purpose=omit if purpose is None else purpose)
        found = list(page.data)

    def show() -> None:
        if not found:
            say("No files yet. `hone files upload FILE` brings one.")
        lines([[file.id, _size(file.bytes), _day(file.created_at), file.purpose, file.filename] for file in found])

    emit(found, as_json, show)


def send(client: OpenAI, file: Path, purpose: str, *, quiet: bool) -> FileObject:
    """Upload a file, in parts when it is large, with a bar."""
    size = file.stat().st_size
    with _bar(quiet) as bar, file.open("rb") as content:
        task = bar.add_task(file.name, total=size)
        known = cast(FilePurpose, purpose)
        if size <= _WHOLE_BYTES:
            told = _Told(content, lambda count: bar.advance(task, count))
            return client.files.create(file=(file.name, told), purpose=known)
        begun = client.uploads.create(
            bytes=size, filename=file.name, mime_type="application/octet-stream", purpose=known
        )
        parts = []
        for chunk in _chunks(content):
            parts.append(client.uploads.parts.create(begun.id, data=("part", chunk)).id)
            bar.advance(task, len(chunk))
        done = client.uploads.complete(begun.id, part_ids=parts)
        assert done.file is not None  # of every upload that was completed
        return done.file


def _chunks(content: io.BufferedReader) -> Iterator[bytes]:
    return iter(lambda: content.read(_WHOLE_BYTES // 2), b"")


class _Told(io.BufferedReader):
    """A file that tells how much of it was read."""

    def __init__(self, file: io.BufferedReader, tell: Any) -> None:
        super().__init__(file.raw)
        self._tell_read = tell

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        self._tell_read(len(found))
        return found


def _bar(quiet: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=quiet,
        transient=True,
    )


def _size(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 100_000 else f"{size:,} B"


def _day(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def find_or_send(client: OpenAI, given: str, purpose: str, *, quiet: bool) -> str:
    """The id of a file that is given by its id or by its path here."""
    if given.startswith("file-") and not Path(given).exists():
        return given
    path = Path(given)
    if not path.is_file():
        raise typer.BadParameter(f"there is no file '{given}' here, and it is no id", param_hint="--file")
    return send(client, path, purpose, quiet=quiet).id
