"""`hone jobs`: submit a fine-tune, look at it, follow it, and change its course."""

import json
import time
from typing import Annotated, Any

import typer
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob

from cli.client import last_event, step_figures, steps_from
from cli.console import say
from cli.exits import Exit
from cli.files import find_or_send
from cli.live import LiveJob
from cli.remote import Json, emit, errors_told, hone_of, is_quiet, lines, plain

app = typer.Typer(no_args_is_help=True)

_POLL_SECONDS = 1.0
_CODES = {
    "succeeded": Exit.GOOD, "failed": Exit.FAILED, "cancelled": Exit.CANCELLED, "paused": Exit.PAUSED,
}  # fmt: skip

JobId = Annotated[str, typer.Argument(help="The job's id, as `hone jobs ls` shows it.")]


@app.command()
def create(
    file: Annotated[str, typer.Option(help="Training data: a file here, which is uploaded, or a file's id.")],
    model: Annotated[str, typer.Option(help="A base model, as `hone jobs models` lists them.")],
    validation: Annotated[str | None, typer.Option(help="Validation data, likewise.")] = None,
    suffix: Annotated[str | None, typer.Option(help="A word in the model's name.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, max=50)] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, max=256)] = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any option of `hone`: --set lora.r=8 --set data.max_seq_length=512"),
    ] = None,
    estimate: Annotated[bool, typer.Option("--estimate", help="Say what it would take, and submit nothing.")] = False,
    follow: Annotated[bool, typer.Option("--follow", help="Stay until it has ended.")] = False,
    as_json: Json = False,
) -> None:
    """Submit a fine-tune and print its id."""
    with errors_told() as client:
        quiet = is_quiet(as_json)
        body: dict[str, Any] = {"model": model, "training_file": find_or_send(client, file, "fine-tune", quiet=quiet)}
        if validation is not None:
            body["validation_file"] = find_or_send(client, validation, "fine-tune", quiet=quiet)
        body |= {name: value for name, value in {"suffix": suffix, "seed": seed}.items() if value is not None}
        asked = {"n_epochs": epochs, "batch_size": batch_size}
        if chosen := {name: value for name, value in asked.items() if value is not None}:
            body["method"] = {"type": "supervised", "supervised": {"hyperparameters": chosen}}
        if hone := _nested(options or []):
            body["hone"] = hone
        if estimate:
            found: Any = client.post("/fine_tuning/jobs/estimate", cast_to=object, body=body)
            emit(found, as_json, lambda: show_estimate(found))
            raise typer.Exit(Exit.REFUSED if found["fits"] is False else Exit.GOOD)
        job = client.post("/fine_tuning/jobs", cast_to=FineTuningJob, body=body)
        if not follow:
            emit(job, as_json, lambda: say(job.id))
            return
        if not as_json:
            say(job.id)
        raise typer.Exit(_follow(client, job.id, as_json))


def _nested(options: list[str]) -> dict[str, Any]:
    """`a.b=1` as ``{"a": {"b": 1}}``; a value that is no JSON is text."""
    made: dict[str, Any] = {}
    for option in options:
        path, equals, text = option.partition("=")
        if not equals or not all(path.split(".")):
            raise typer.BadParameter(f"'{option}' is not NAME.NAME=VALUE", param_hint="--set")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        *outer, last = path.removeprefix("hone.").split(".")
        inner = made
        for name in outer:
            inner = inner.setdefault(name, {})
        inner[last] = value
    return made


@app.command("ls")
def list_jobs(
    limit: Annotated[int, typer.Option(min=1, max=100, help="The newest so many.")] = 20, as_json: Json = False
) -> None:
    """List the project's fine-tunes, newest first."""
    with errors_told() as client:
        found = list(client.fine_tuning.jobs.list(limit=limit).data)

    def show() -> None:
        if not found:
            say("No jobs yet. `hone jobs create --file train.jsonl --model MODEL` submits one.")
        lines([[job.id, job.status, _steps(job), job.model, job.fine_tuned_model or ""] for job in found])

    emit(found, as_json, show)


@app.command()
def models(as_json: Json = False) -> None:
    """List the models that a job or a run may name."""
    with errors_told() as client:
        found = list(client.models.list().data)
    emit(found, as_json, lambda: lines([[model.id, str(hone_of(model).get("description", ""))] for model in found]))


@app.command()
def show(job_id: JobId, as_json: Json = False) -> None:
    """Show a job: its status, settings with their reasons, and results."""
    with errors_told() as client:
        job = client.fine_tuning.jobs.retrieve(job_id)
        steps = [] if as_json else steps_from(client, job_id, 0)
    emit(job, as_json, lambda: _show(job, steps))


def _show(job: FineTuningJob, steps: list[dict[str, Any]]) -> None:
    say(f"{job.id}  {job.status}  {_steps(job)}", style="bold")
    if job.error and job.error.message:
        say(f"{job.error.code}: {job.error.message}", style="red")
    if figures := step_figures(steps):
        say(figures)
    hone = hone_of(job)
    settings = {"hyperparameters": job.hyperparameters.model_dump(mode="json", exclude_none=True)}
    settings |= {name: hone[name] for name in ("lora", "quantization", "training", "data")}
    for group, values in settings.items():
        for name, value in values.items():
            reason = hone["reasons"].get(f"{group}.{name}", "")
            say(f"  {group}.{name} = {value}" + (f"  ({reason})" if reason else ""))
    if job.fine_tuned_model:
        say(f"model: {job.fine_tuned_model}")
        say(f"adapter: hone adapters pull {job.id}")


@app.command()
def follow(job_id: JobId, as_json: Json = False) -> None:
    """Watch a job until it has ended; the exit code says how."""
    with errors_told() as client:
        code = _follow(client, job_id, as_json)
    raise typer.Exit(code)


def _follow(client: OpenAI, job_id: str, as_json: bool) -> Exit:
    """Show a job as it goes on. As JSON: each step's figures as a line, and the job as the last."""
    seen = -1
    with LiveJob(job_id, "steps", quiet=as_json) as live:
        while True:
            job = client.fine_tuning.jobs.retrieve(job_id)
            fresh = steps_from(client, job_id, seen + 1)
            if as_json:
                for step in fresh:
                    typer.echo(json.dumps(step))
            else:
                progress = hone_of(job)["progress"]
                figures = step_figures(fresh) or last_event(client, job_id)
                live.update(progress["step"], progress["total_steps"], figures, job.estimated_finish)
            seen = max([seen, *(step["step"] for step in fresh)])
            if job.status in _CODES:
                break
            time.sleep(_POLL_SECONDS)
    if as_json:
        typer.echo(json.dumps(plain(job)))
    else:
        reason = f": {job.error.message}" if job.error and job.error.message else ""
        say(f"{job.status}{reason}" + (f"  {job.fine_tuned_model}" if job.fine_tuned_model else ""))
    return _CODES[job.status]


@app.command()
def cancel(job_id: JobId, as_json: Json = False) -> None:
    """Cancel a job; what it has learnt is lost."""
    _turn(job_id, "cancel", as_json)


@app.command()
def pause(job_id: JobId, as_json: Json = False) -> None:
    """Pause a job: its GPU is free as soon as a checkpoint is written."""
    _turn(job_id, "pause", as_json)


@app.command()
def resume(job_id: JobId, as_json: Json = False) -> None:
    """Let a paused job go on from its checkpoint."""
    _turn(job_id, "resume", as_json)


def _turn(job_id: str, verb: str, as_json: bool) -> None:
    with errors_told() as client:
        job: FineTuningJob = getattr(client.fine_tuning.jobs, verb)(job_id)
    emit(job, as_json, lambda: say(f"{job.id}  {job.status}"))


def _steps(job: FineTuningJob) -> str:
    progress = hone_of(job)["progress"]
    return f"{progress['step']}/{progress['total_steps'] or '?'}"


# --- The estimate ----------------------------------------------------------------------------------------------------


def show_estimate(found: dict[str, Any]) -> None:
    """Print an estimate for people."""
    data, times = found["data"], found["time"]
    say(f"{found['model']}: {found['steps']:,} steps, {found['trained_tokens']:,} tokens", style="bold")
    say(
        f"  {data['samples']:,} samples of {data['mean_tokens']:,} tokens in the mean, "
        f"cut at {data['max_seq_length']:,} ({data['basis']})"
    )
    say(f"  {_duration(times['low_seconds'])} to {_duration(times['high_seconds'])}: {times['message']}")
    if (memory := found["memory"]) is not None:
        for part in memory["parts"]:
            say(f"  {part['bytes'] / 1e9:8.2f} GB  {part['title']}")
        say(f"  {memory['peak'] / 1e9:8.2f} GB  at the peak", style="bold")
    for device in found["devices"]:
        say(f"  {'fits' if device['fits'] else 'does not fit'}: {device['name']}, {device['memory'] / 1e9:.0f} GB")
    if found["nearest"]:
        say(f"  {found['nearest']['message']}", style="red")
    for warning in found["warnings"]:
        say(f"  {warning}")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
