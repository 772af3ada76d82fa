"""`hone adapters`: bring a trained adapter here."""

import hashlib
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from openai import OpenAI
from openai.types import FileObject
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from cli.console import console, say
from cli.remote import Json, emit, errors_told, hone_of, is_quiet, refuse
from worker.bundles import BundleError, unpack, verify

app = typer.Typer(no_args_is_help=True)


@app.callback()
def _adapters() -> None:
    """Adapters."""


@app.command()
def pull(
    name: Annotated[str, typer.Argument(help="A job's id, or the name of a fine-tuned model.")],
    out: Annotated[Path, typer.Option(help="A folder that does not exist yet.")] = Path("adapter"),
    as_json: Json = False,
) -> None:
    """Download an adapter, check it, and unpack it for PEFT."""
    if out.exists():
        raise refuse(f"{out} is there already. Remove it, or name another folder with --out.")
    with errors_told() as client, TemporaryDirectory(dir=_existing(out.parent)) as folder:
        archive = Path(folder) / "adapter.zip"
        _download(client, _find(client, name), archive, quiet=is_quiet(as_json))
        try:
            unpack(archive, Path(folder) / "adapter")
            names = verify(Path(folder) / "adapter")
        except BundleError as error:
            raise refuse(f"what came is no whole adapter: {error}.") from None
        shutil.move(Path(folder) / "adapter", out)
    found = {"folder": str(out), "files": sorted(names)}
    emit(found, as_json, lambda: say(f"{out}: peft.PeftModel.from_pretrained(base, '{out}')"))


def _existing(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _find(client: OpenAI, name: str) -> FileObject:
    """The adapter's file. A job's is among its results."""
    if not name.startswith("ftjob-"):
        found = hone_of(client.models.retrieve(name)).get("adapter_file")
        if found is None:
            raise refuse(f"{name} is a base model and has no adapter.")
        return client.files.retrieve(found)
    job = client.fine_tuning.jobs.retrieve(name)
    for file_id in job.result_files:
        if (file := client.files.retrieve(file_id)).filename == "adapter.zip":
            return file
    raise refuse(f"the job {name} has no adapter: its status is '{job.status}'.")


def _download(client: OpenAI, file: FileObject, target: Path, *, quiet: bool) -> None:
    """Stream a file here and hold it against the SHA-256 that the server tells."""
    digest = hashlib.sha256()
    columns = (TextColumn(file.filename), BarColumn(bar_width=24), DownloadColumn(), TimeRemainingColumn())
    with (
        Progress(*columns, console=console, disable=quiet, transient=True) as bar,
        target.open("wb") as here,
        client.files.with_streaming_response.content(file.id) as answer,
    ):
        task = bar.add_task("", total=file.bytes)
        for chunk in answer.iter_bytes(2**20):
            here.write(chunk)
            digest.update(chunk)
            bar.advance(task, len(chunk))
    if digest.hexdigest() != hone_of(file)["sha256"]:
        raise refuse("what came differs from its SHA-256. Try again.")
