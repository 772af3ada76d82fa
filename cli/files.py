"""`hone files`: look through a dataset here, and bring files to a Hone."""

import io
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
from cli.remote import Json, emit, errors_told, is_quiet, lines, refuse
from core.errors import HoneError
from core.specs import PromptTemplate

app = typer.Typer(no_args_is_help=True)

#: Above this, a file goes in parts, as OpenAI's own client sends it.
_WHOLE_BYTES = 64 * 2**20


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
