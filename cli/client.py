"""The demo's requests: each step a call or two of OpenAI's official client, and the wait for what it started."""

import hashlib
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar

from openai import OpenAI
from openai._legacy_response import HttpxBinaryResponseContent
from openai.types.evals import RunRetrieveResponse
from openai.types.fine_tuning import FineTuningJob, SupervisedHyperparametersParam

from cli.embedded import DemoError
from cli.live import LiveJob

_POLL_SECONDS = 1.0
#: A job that shows nothing for so long hangs. The longest honest silence is one step, some 20 s on two slow cores.
_SILENCE_SECONDS = 300

_Watched = TypeVar("_Watched", FineTuningJob, RunRetrieveResponse)

#: Chosen for two cores. A batch of 8 gives 17 steps from 144 samples, of which 8 % (12) are kept for the validation
#: loss. That is taken at the start and every fifth step, a tenth of the training's time;
#: a checkpoint (60 MB) is written as often.
HYPERPARAMETERS: SupervisedHyperparametersParam = {"n_epochs": 1, "batch_size": 8}
HONE_OPTIONS = {
    "lora": {"r": 16, "alpha": 32},
    "quantization": {"type": "nf4", "double_quantization": True},
    "training": {"lr_scheduler": "cosine", "eval_steps": 5, "save_steps": 5},
    "data": {"prompt_template": "chat", "validation_fraction": 0.08},
}


def upload(client: OpenAI, name: str, purpose: Literal["fine-tune", "evals"], lines: Iterable[str]) -> str:
    """Upload lines as a file and return its id; the server has checked each line by then."""
    content = "".join(lines).encode()
    return client.files.create(file=(name, content), purpose=purpose).id


def fine_tune(client: OpenAI, model: str, training_file: str) -> tuple[FineTuningJob, list[dict[str, Any]]]:
    """Fine-tune and wait: the job as it ended, and each step's figures. Raises DemoError unless it succeeded."""
    job = client.fine_tuning.jobs.create(
        model=model,
        training_file=training_file,
        suffix="demo",
        seed=42,
        method={"type": "supervised", "supervised": {"hyperparameters": HYPERPARAMETERS}},
        extra_body={"hone": HONE_OPTIONS},
    )
    steps: dict[int, dict[str, Any]] = {}

    def look() -> FineTuningJob:
        return client.fine_tuning.jobs.retrieve(job.id)

    def show(present: FineTuningJob, live: LiveJob) -> None:
        # From the last step on, and not after it: its validation loss comes some seconds later than its training loss.
        fresh = steps_from(client, job.id, max(steps, default=0))
        steps.update((step["step"], step) for step in fresh)
        progress = (present.model_extra or {})["hone"]["progress"]
        figures = step_figures(list(steps.values())) or last_event(client, job.id)
        live.update(progress["step"], progress["total_steps"], figures, present.estimated_finish)

    ended = _wait("Fine-tuning", "steps", look, show, {"succeeded", "failed", "cancelled"})
    if ended.status != "succeeded":
        reason = ended.error.message if ended.error else "no reason given"
        raise DemoError(f"the fine-tune {ended.id} ended as '{ended.status}': {reason}")
    return ended, list(steps.values())


def steps_from(client: OpenAI, job_id: str, first: int) -> list[dict[str, Any]]:
    """The figures of each step from ``first`` on, in order; a request of Hone's own, made with OpenAI's client."""
    path = f"/fine_tuning/jobs/{job_id}/metrics"
    page: Any = client.get(path, cast_to=object, options={"params": {"after_step": first - 1}})
    return list(page["data"])


def step_figures(steps: list[dict[str, Any]]) -> str:
    """The latest figures, as words."""
    shown = []
    for name, title, digits in (
        ("train_loss", "loss", 3),
        ("valid_loss", "validation", 3),
        ("tokens_per_second", "tokens/s", 0),
    ):
        known = [step[name] for step in steps if step.get(name) is not None]
        if known:
            shown.append(f"{title} {known[-1]:.{digits}f}")
    return ", ".join(shown)


def last_event(client: OpenAI, job_id: str) -> str:
    """What the job said last, while it has no figures yet."""
    events = client.fine_tuning.jobs.list_events(job_id, limit=1).data
    return events[0].message if events else ""


def evaluate(client: OpenAI, model: str, items_file: str, max_tokens: int) -> RunRetrieveResponse:
    """Evaluate a model and its base on the items and wait. Raises DemoError unless the run completed."""
    made = client.evals.create(
        name="Held-out functions",
        data_source_config={
            "type": "custom",
            "item_schema": {
                "type": "object",
                "properties": {"instruction": {"type": "string"}, "completion": {"type": "string"}},
                "required": ["instruction", "completion"],
            },
            "include_sample_schema": True,
        },
        testing_criteria=[
            {  # type: ignore[list-item]  # a criterion of Hone's own
                "type": "code_bleu",
                "name": "CodeBLEU",
                "input": "{{sample.output_text}}",
                "reference": "{{item.completion}}",
                "lang": "python",
            }
        ],
    )
    run = client.evals.runs.create(
        made.id,
        name="Base and tuned",
        data_source={
            "type": "completions",
            "model": model,
            "source": {"type": "file_id", "id": items_file},
            "input_messages": {"type": "template", "template": [{"role": "user", "content": "{{item.instruction}}"}]},
            "sampling_params": {"max_completion_tokens": max_tokens, "temperature": 0, "seed": 42},
        },
    )
    began = time.time()

    def look() -> RunRetrieveResponse:
        return client.evals.runs.retrieve(run.id, eval_id=made.id)

    def show(present: RunRetrieveResponse, live: LiveJob) -> None:
        progress = (present.model_extra or {})["hone"]["progress"]
        done, total = progress["step"], progress["total_steps"]
        finish = time.time() + (time.time() - began) / done * (total - done) if done and total else None
        live.update(done, total, "", finish)

    ended = _wait("Answering with base and tuned", "answers", look, show, {"completed", "failed", "canceled"})
    if ended.status != "completed":
        reason = ended.error.message if ended.error else "no reason given"
        raise DemoError(f"the evaluation {ended.id} ended as '{ended.status}': {reason}")
    return ended


def _wait(
    title: str,
    unit: str,
    look: Callable[[], _Watched],
    show: Callable[[_Watched, LiveJob], None],
    ended: set[str],
) -> _Watched:
    """Look at a job until it has ended, and show it meanwhile. Raises DemoError when nothing changes for too long."""
    last: Any = None
    changed_at = time.monotonic()
    with LiveJob(title, unit) as live:
        while True:
            present = look()
            show(present, live)
            if present.status in ended:
                return present
            state = (present.status, (present.model_extra or {})["hone"]["progress"])
            if state != last:
                last, changed_at = state, time.monotonic()
            if time.monotonic() - changed_at > _SILENCE_SECONDS:
                raise DemoError(
                    f"{title}: nothing has happened for {_SILENCE_SECONDS} s; the status is '{present.status}'"
                )
            time.sleep(_POLL_SECONDS)


def fetch_results(client: OpenAI, job: FineTuningJob, run: RunRetrieveResponse, out: Path) -> None:
    """Download every result file of both jobs under its own name, and the adapter by its own address as well."""
    evaluation_files: list[str] = (run.model_extra or {})["hone"]["result_files"]
    for file_id in [*job.result_files, *evaluation_files]:
        name = Path(client.files.retrieve(file_id).filename).name
        client.files.content(file_id).write_to_file(out / name)
    by_address = client.get(f"/fine_tuning/jobs/{job.id}/adapter", cast_to=HttpxBinaryResponseContent)
    digests = [hashlib.sha256(data).hexdigest() for data in (by_address.content, (out / "adapter.zip").read_bytes())]
    if len({*digests, by_address.response.headers.get("x-content-sha256")}) != 1:
        raise DemoError("the adapter's address and its result file hold different bytes, or not those of its SHA-256.")
