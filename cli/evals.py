"""`hone evals`: score a model beside its base, and look at what came out."""

import time
from typing import Annotated, Any

import typer
from openai import OpenAI
from openai.types.evals import RunRetrieveResponse
from rich.table import Table

from cli.console import console, say
from cli.exits import Exit
from cli.files import find_or_send
from cli.live import LiveJob
from cli.remote import Json, emit, errors_told, hone_of, is_quiet, lines

app = typer.Typer(no_args_is_help=True)

_POLL_SECONDS = 1.0
_CODES = {"completed": Exit.GOOD, "failed": Exit.FAILED, "canceled": Exit.CANCELLED}
_TITLES = {
    "codebleu": "CodeBLEU", "ngram": "n-gram", "weighted_ngram": "weighted", "syntax": "syntax", "dataflow": "dataflow",
}  # fmt: skip


@app.command()
def run(
    model: Annotated[str, typer.Option(help="A fine-tuned model, which is answered beside its base, or a base.")],
    items: Annotated[
        str, typer.Option(help='Lines of {"item": {…}}: a file here, which is uploaded, or a file\'s id.')
    ],
    prompt: Annotated[str, typer.Option(help="The question, with {{item.NAME}}.")] = "{{item.instruction}}",
    reference: Annotated[str, typer.Option(help="The right answer, likewise.")] = "{{item.completion}}",
    max_tokens: Annotated[int, typer.Option(min=1, max=8192, help="Longest answer.")] = 256,
    name: Annotated[str, typer.Option(help="What to call it.")] = "CodeBLEU",
    wait: Annotated[bool, typer.Option(help="Stay until it has ended.")] = True,
    as_json: Json = False,
) -> None:
    """Evaluate by CodeBLEU; the exit code says how it ended."""
    with errors_told() as client:
        file_id = find_or_send(client, items, "evals", quiet=is_quiet(as_json))
        made = client.evals.create(
            name=name,
            data_source_config={"type": "custom", "item_schema": {"type": "object"}, "include_sample_schema": True},
            testing_criteria=[_criterion(name, reference)],
        )
        started = client.evals.runs.create(made.id, name=name, data_source=_source(model, file_id, prompt, max_tokens))
        ended = client.evals.runs.retrieve(started.id, eval_id=made.id)
        if wait:
            ended = _wait(client, made.id, started.id, quiet=as_json)
    emit(ended, as_json, lambda: _show(ended))
    raise typer.Exit(_CODES.get(ended.status, Exit.GOOD))


def _criterion(name: str, reference: str) -> Any:
    return {
        "type": "code_bleu",
        "name": name,
        "input": "{{sample.output_text}}",
        "reference": reference,
        "lang": "python",
    }


def _source(model: str, file_id: str, prompt: str, max_tokens: int) -> Any:
    return {
        "type": "completions",
        "model": model,
        "source": {"type": "file_id", "id": file_id},
        "input_messages": {"type": "template", "template": [{"role": "user", "content": prompt}]},
        "sampling_params": {"max_completion_tokens": max_tokens, "temperature": 0},
    }


def _wait(client: OpenAI, eval_id: str, run_id: str, *, quiet: bool) -> RunRetrieveResponse:
    began = time.time()
    with LiveJob("Answering", "answers", quiet=quiet) as live:
        while True:
            found = client.evals.runs.retrieve(run_id, eval_id=eval_id)
            progress = hone_of(found)["progress"]
            done, total = progress["step"], progress["total_steps"]
            finish = time.time() + (time.time() - began) / done * (total - done) if done and total else None
            live.update(done, total, "", finish)
            if found.status in _CODES:
                return found
            time.sleep(_POLL_SECONDS)


@app.command()
def show(
    eval_id: Annotated[str, typer.Argument(help="The evaluation's id.")],
    run_id: Annotated[str | None, typer.Argument(help="A run's id; without, its runs are listed.")] = None,
    as_json: Json = False,
) -> None:
    """Show a run's scores, or list an evaluation's runs."""
    with errors_told() as client:
        if run_id is not None:
            found = client.evals.runs.retrieve(run_id, eval_id=eval_id)
            emit(found, as_json, lambda: _show(found))
            return
        runs = list(client.evals.runs.list(eval_id).data)
        emit(runs, as_json, lambda: lines([[run.id, run.status, run.model or "", run.name] for run in runs]))


@app.command("ls")
def list_evals(as_json: Json = False) -> None:
    """List the project's evaluations, newest first."""
    with errors_told() as client:
        found = list(client.evals.list(limit=50, order="desc").data)
    emit(found, as_json, lambda: lines([[one.id, one.name] for one in found]))


def _show(found: RunRetrieveResponse) -> None:
    say(f"{found.id}  {found.status}  {found.model}", style="bold")
    if found.error and found.error.message:
        say(f"{found.error.code}: {found.error.message}", style="red")
    scores = hone_of(found).get("scores") or {}
    for criterion in scores.get("criteria", []):
        rows = {
            title: criterion.get(key) for title, key in (("base", "base"), ("tuned", "model")) if criterion.get(key)
        }
        names = [name for name in _TITLES if any(name in figures for figures in rows.values())]
        table = Table(criterion["name"], *(_TITLES[name] for name in names))
        for title, figures in rows.items():
            table.add_row(title, *(f"{figures[name]:.3f}" if name in figures else "-" for name in names))
        console.print(table)
