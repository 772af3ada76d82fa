"""A lively project: jobs in every state, with curves that a GPU has drawn and answers that the scorer has scored.

Uploads, jobs and evaluations go through the API, a worker's side through ``models.lifecycle`` and ``worker.record``;
only times are moved afterwards, so that not everything has happened this second.
"""

import csv
import io
import json
import math
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import update
from starlette.testclient import TestClient

from cli.samples import Sample, stdlib_samples
from core.errors import TrainingError
from core.ids import new_id
from core.resolve import Facts, resolve
from core.specs import EvaluationSpec, FineTuneSpec
from core.storage import Storage
from models import lifecycle
from models.database import Database
from models.lifecycle import Claim
from models.tables import (
    Checkpoint,
    EvalOutputItem,
    EvalRun,
    FineTunedModel,
    Job,
    JobEvent,
    StepMetric,
    WebhookDelivery,
    Worker,
)
from models.webhooks import EVENT_TYPES, PAUSES, event_body
from tests.api.driving import _artifact, claim
from tests.core.shapes import LLAMA_7B, SMOLLM2
from worker.answer import Answer
from worker.grading import Grading
from worker.items import Item
from worker.kept import Kept
from worker.protocol import Event, LineWriter, Step
from worker.record import record
from worker.score_plot import plot_scores
from worker.score_report import Asked, make_report, write_items

RUNS = Path(__file__).parents[2] / "benchmarks" / "results" / "h100-2026-11-24" / "smollm2"
LLAMA = "meta-llama/Llama-2-7b-hf"
SMOLLM = "smollm2-135m-instruct"
EVAL: dict[str, Any] = {
    "name": "Held-out functions",
    "data_source_config": {"type": "custom", "item_schema": {"type": "object"}, "include_sample_schema": True},
    "testing_criteria": [
        {
            "type": "code_bleu",
            "name": "Like the original",
            "lang": "python",
            "input": "{{sample.output_text}}",
            "reference": "{{item.completion}}",
        }
    ],
}
_NO_TIMES: dict[str, Any] = {"seconds": 0.0, "made_tokens": 0, "kept": 0}
HARDWARE: dict[str, Any] = {
    "device": "cuda",
    "gpu": "NVIDIA H100 80GB HBM3",
    "gpu_memory": 85_017_493_504,
    "processor": "Xeon",
    "cores": 16,
}


@dataclass(frozen=True)
class State:
    """Ids of what there is to look at."""

    running: str
    succeeded: str
    compared: list[str]
    dataset: str
    eval_id: str
    run_id: str
    endpoint: str


class Maker:
    """Makes the project, step by step."""

    def __init__(self, http: TestClient, database: Database, storage: Storage) -> None:
        self.http, self.database, self.storage = http, database, storage

    def make(self) -> State:
        samples = stdlib_samples()
        with self.database.write() as session:
            told = {"device": "cuda", "gpus": 1, "fast_bfloat16": True, "name": HARDWARE["gpu"]}
            session.add(Worker(owner="gpu-box-1", memory=HARDWARE["gpu_memory"], **told))
        lines = [sample.training_line() for sample in samples[60:1260]]
        dataset = self.upload("stdlib-functions.jsonl", [*lines, lines[4], lines[9]], "fine-tune")
        reviews = self.upload(
            "review-comments.jsonl", [sample.training_line() for sample in samples[1300:1500]], "fine-tune"
        )
        held_out = self.upload(
            "stdlib-validation.jsonl", [sample.training_line() for sample in samples[1260:1300]], "fine-tune"
        )
        items = self.upload("held-out.jsonl", [sample.item_line() for sample in samples[:40]], "evals")
        slow = self.submit("stdlib-lr-2e-4", SMOLLM, dataset, {"training": {"learning_rate": 2e-4}})
        self.succeed(self.claim(), "step_metrics-lr2e-4.csv")
        good = self.submit("stdlib-r16", SMOLLM, dataset, {}, validation_file=held_out)
        self.succeed(self.claim(), "step_metrics.csv")
        failed = self.submit("review-bot", LLAMA, reviews, {"lora": {"r": 64, "alpha": 128}})
        self.fail(self.claim())
        cancelled = self.submit("review-bot-small", LLAMA, reviews, {})
        self.cancel(self.claim())
        eval_id = str(self.http.post("/v1/evals", json=EVAL).raise_for_status().json()["id"])
        run_id = self.ask(eval_id, good, items, "stdlib-r16 on held-out")
        self.answer(samples[:40], 2)
        self.ask(eval_id, slow, items, "stdlib-lr-2e-4 on held-out")
        self.answer(samples[:40], 1)
        paused = self.submit("night-run", SMOLLM, dataset, {})
        self.run(self.claim(), "step_metrics-lr8e-3.csv", until=64, pause=True)
        changed = {"lora": {"r": 32, "alpha": 64}, "training": {"lr_scheduler": "linear"}}
        running = self.submit("stdlib-llama", LLAMA, dataset, changed)
        self.run(self.claim(), "step_metrics-lr1.3e-3.csv", until=97)
        first = self.submit("review-bot-r16", LLAMA, reviews, {"lora": {"r": 16}})
        second = self.submit("stdlib-llama-long", LLAMA, dataset, {"training": {"max_steps": 4000}})
        self.ask(eval_id, good, items, "stdlib-r16 once more")
        endpoint = self.webhooks(good, run_id, failed)
        self.age({slow: 49, good: 26, failed: 7, cancelled: 5, paused: 2.5, running: 1.4, first: 0.7, second: 0.2})
        return State(running, good, [good, slow], dataset, eval_id, run_id, endpoint)

    # --- A user's side ------------------------------------------------------------------------------------------------

    def upload(self, name: str, lines: list[str], purpose: str) -> str:
        answer = self.http.post("/v1/files", data={"purpose": purpose}, files={"file": (name, "".join(lines).encode())})
        return str(answer.raise_for_status().json()["id"])

    def submit(self, suffix: str, model: str, file: str, hone: dict[str, Any], **more: str) -> str:
        body = {"model": model, "training_file": file, "suffix": suffix, "seed": 42, "hone": hone, **more}
        return str(self.http.post("/v1/fine_tuning/jobs", json=body).raise_for_status().json()["id"])

    # --- A worker's side ----------------------------------------------------------------------------------------------

    def claim(self) -> Claim:
        return claim(self.database)

    def begin(self, taken: Claim, total: int) -> None:
        llama = self.model_of(taken) == LLAMA
        parameters, trainable = (6_778_392_576, 79_953_920) if llama else (139_399_488, 4_884_480)
        report = {
            "model": {
                "parameters": parameters,
                "trainable_parameters": trainable,
                "trainable_percent": round(100 * trainable / parameters, 2),
            },
            "dataset": {
                "train_samples": 1190,
                "validation_samples": 40 if self.spec_of(taken)["validation_file"] else 12,
                "tokens_per_epoch": 232_889,
            },
            "hardware": HARDWARE,
        }
        every = max(1, total // 10)
        resolved = resolve(FineTuneSpec.model_validate(self.spec_of(taken)), facts(llama=llama)).model_copy(
            update={"total_steps": total, "eval_steps": every, "save_steps": every}
        )
        with self.database.write() as session:
            lifecycle.write_as(
                session, taken, resolved=resolved.model_dump(mode="json"), report=report, total_steps=total
            )
            for message in (
                "Preparing the data",
                "Loading base model " + self.model_of(taken),
                "Training on the fast path",
            ):
                record(session, taken, [Event(message=message)])

    def spec_of(self, taken: Claim) -> dict[str, Any]:
        with self.database.read() as session:
            return session.get_one(Job, taken.job_id).spec

    def model_of(self, taken: Claim) -> str:
        with self.database.read() as session:
            return session.get_one(Job, taken.job_id).model

    def run(self, taken: Claim, curve: str, until: int | None = None, *, pause: bool = False) -> int:
        """Tell the steps of a curve that was measured, up to ``until``; then pause, if asked to."""
        with (RUNS / curve).open() as file:
            rows = list(csv.DictReader(file))
        total = max(int(row["step"]) for row in rows)
        self.begin(taken, total)
        gigabytes = 11.2e9 if self.model_of(taken) == LLAMA else 2.1e9
        for row in rows:
            step = int(row.pop("step"))
            if until is not None and step > until:
                break
            metrics = {name: float(value) for name, value in row.items() if value and hasattr(StepMetric, name)}
            metrics["peak_memory"] = gigabytes * (1 - 0.25 * math.exp(-step / 6))
            with self.database.write() as session:
                record(
                    session,
                    taken,
                    [Step(step=step, total_steps=total, metrics=metrics, seconds_left=(total - step) * 4.1)],
                )
                if step and step % max(1, total // 10) == 0:
                    row_ = Checkpoint(
                        job_id=taken.job_id, step=step, storage_key="c", bytes=9_800_000, sha256="0", metrics=metrics
                    )
                    lifecycle.record_checkpoint(session, taken, row_)
        if pause:
            self.http.post(f"/v1/fine_tuning/jobs/{taken.job_id}/pause").raise_for_status()
            with self.database.write() as session:
                lifecycle.hand_back(session, taken, "it was paused", count_attempt=False, max_attempts=3)
        return total

    def succeed(self, taken: Claim, curve: str) -> None:
        self.run(taken, curve)
        with self.database.write() as session:
            job = session.get_one(Job, taken.job_id)
            files = [
                _artifact(self.storage, job, "step_metrics.csv", (RUNS / curve).read_bytes()),
                _artifact(self.storage, job, "adapter.zip", b"PK" + bytes(9_774_080)),
            ]
            name = f"ft:{job.model}:hone:{job.spec['suffix']}:{job.id[-8:]}"
            report = (job.report or {}) | {"run": {"seconds": 141.0, "peak_memory": 2_100_000_000}}
            values: dict[str, Any] = {"fine_tuned_model": name, "trained_tokens": 1_152_102, "report": report}
            lifecycle.succeed(session, taken, files, **values)
            session.add(
                FineTunedModel(
                    id=name, project_id=job.project_id, job_id=job.id, base_model=job.model, prompt_template="chat",
                    adapter_file_id=files[1].id,
                )
            )  # fmt: skip

    def fail(self, taken: Claim) -> None:
        self.begin(taken, 40)
        message = (
            "The tokenizer of the base model could not be fetched: 403 from huggingface.co. "
            "Accept Meta's licence and set HF_TOKEN on the worker."
        )
        with self.database.write() as session:
            lifecycle.fail(session, taken, TrainingError(message, code="model_unavailable"))

    def cancel(self, taken: Claim) -> None:
        self.run(taken, "step_metrics.csv", until=12)
        with self.database.write() as session:
            lifecycle.confirm_cancelled(session, taken)

    def ask(self, eval_id: str, job_id: str, items: str, name: str) -> str:
        model = self.http.get(f"/v1/fine_tuning/jobs/{job_id}").raise_for_status().json()["fine_tuned_model"]
        turn = {"type": "message", "role": "user", "content": {"type": "input_text", "text": "{{item.instruction}}"}}
        source = {
            "type": "completions", "model": model, "source": {"type": "file_id", "id": items},
            "input_messages": {"type": "template", "template": [turn]},
        }  # fmt: skip
        answer = self.http.post(f"/v1/evals/{eval_id}/runs", json={"name": name, "data_source": source})
        return str(answer.raise_for_status().json()["id"])

    def answer(self, samples: list[Sample], skill: int) -> None:
        """A worker's side of an evaluation: answers made up, all else by the worker's own functions."""
        taken = self.claim()
        spec = EvaluationSpec.model_validate(self.spec_of(taken))
        items = [
            Item(line, {"instruction": sample.instruction, "completion": sample.output}, ())
            for line, sample in enumerate(samples, start=1)
        ]
        sides = {
            "model": [tuned(sample.output, place, skill) for place, sample in enumerate(samples)],
            "base": [untuned(sample.output, place) for place, sample in enumerate(samples)],
        }
        answers = {side: [Answer(text, len(text) // 3, "stop") for text in texts] for side, texts in sides.items()}
        asked = Asked([item.fields["instruction"] for item in items], [41] * len(items), **answers, **_NO_TIMES)
        report, made = judge(spec, items, asked)
        with self.database.write() as session:
            job, run = session.get_one(Job, taken.job_id), session.get_one(EvalRun, taken.job_id)
            rows = [output_item(run.id, json.loads(line)) for line in made["items.jsonl"].splitlines()]
            lifecycle.replace_items(session, taken, run, rows)
            files = [_artifact(self.storage, job, name, content) for name, content in made.items()]
            lifecycle.succeed(session, taken, files, report=report)

    def webhooks(self, job_id: str, run_id: str, failed_id: str) -> str:
        """Two endpoints, and deliveries to one: taken, taken at the third try, given up, and one that waits."""
        for name, url in (
            ("night shift", "https://pager.example.com/hone"),
            ("ci", "https://ci.example.com/hooks/hone"),
        ):
            body = {"name": name, "url": url, "event_types": list(EVENT_TYPES.values())[:3]}
            endpoint = self.http.post("/v1/webhook_endpoints", json=body).raise_for_status().json()["id"]
        now = time.time()
        busy = [(503, None, 0.31), (None, "no answer within 10 s", 10.0)]
        sent: list[tuple[str, str, str, list[tuple[int | None, str | None, float]], float]] = [
            ("fine_tuning.job.succeeded", job_id, "delivered", [*busy, (204, None, 0.21)], 49),
            ("fine_tuning.job.failed", failed_id, "failed", [(410, None, 0.12)] * 8, 30),
            ("eval.run.succeeded", run_id, "delivered", [(204, None, 0.08)], 3),
            ("fine_tuning.job.cancelled", job_id, "pending", busy, 0.1),
        ]
        with self.database.write() as session:
            for event_type, subject, status, tries, hours in sent:
                at = now - 3600 * hours
                log = [
                    {"at": at + sum(PAUSES[:n]), "seconds": took, "status_code": code, "error": error}
                    for n, (code, error, took) in enumerate(tries)
                ]
                event_id = new_id("evt_")
                session.add(
                    WebhookDelivery(
                        endpoint_id=endpoint, event_id=event_id, event_type=event_type, status=status, created_at=at,
                        body=event_body(event_id, event_type, subject, at), tries=len(tries), tries_left=8 - len(tries),
                        log={"tries": log}, next_try_at=now + 1700 if status == "pending" else None,
                    )
                )  # fmt: skip
                session.flush()
        return str(endpoint)

    def age(self, hours: dict[str, float]) -> None:
        """Move jobs, and what happened to them, into the past."""
        with self.database.write() as session:
            for job_id, ago in hours.items():
                job = session.get_one(Job, job_id)
                job.created_at -= 3600 * ago
                if job.started_at is not None:
                    job.started_at -= 3600 * ago
                if job.status == "running":
                    job.estimated_finish = time.time() + 1500
                    job.lease_expires_at = time.time() + 86_400
                moved = 3600 * ago - 200
                for table in (JobEvent, Checkpoint):
                    session.execute(
                        update(table).where(table.job_id == job_id).values(created_at=table.created_at - moved)
                    )


def facts(*, llama: bool) -> Facts:
    """What the rules would know about the dataset, the models and an H100."""
    return Facts(
        train_samples=1190,
        mean_tokens=221.4,
        p90_tokens=422,
        longest_tokens=1906,
        context_length=4096 if llama else 8192,
        shape=LLAMA_7B if llama else SMOLLM2,
        available_memory=int(0.92 * HARDWARE["gpu_memory"]),
        device="cuda",
        fast_bfloat16=True,
        prompt_template="llama2" if llama else "chat",
        deviation_tokens=190.0,
    )


def judge(spec: EvaluationSpec, items: list[Item], asked: Asked) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The worker's report of answers, and its files."""
    with Grading(spec.criteria, items, Kept(), LineWriter(io.StringIO())) as grading:
        for place in range(len(items)):
            grading.put("model", place, asked.model[place])
            grading.put("base", place, (asked.base or [])[place])
        judged = grading.finish()
    report = make_report(spec, len(items), judged["model"], judged["base"], None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_items(folder / "items.jsonl", items, judged["model"], judged["base"], asked)
        plot_scores(report, folder / "codebleu.png")
        (folder / "scores.json").write_text(json.dumps(report))
        return report, {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def output_item(run_id: str, line: dict[str, Any]) -> EvalOutputItem:
    """A line of items.jsonl as the worker stores it."""
    return EvalOutputItem(
        run_id=run_id, position=line["position"], status=line["status"], item=line["item"], sample=line["sample"],
        base=line["base"], results={"results": line["results"]},
    )  # fmt: skip


def tuned(code: str, place: int, skill: int) -> str:
    """Code as a tuned model might have written it: ``skill`` of five with other names, else a beginning and a guess."""
    names = {"result": "out", "value": "val", "name": "label", "line": "row", "key": "k", "args": "arguments"}
    changed = re.sub(r"\b[a-z_]+\b", lambda found: names.get(found[0], found[0]), code)
    lines = [line for line in changed.splitlines() if not line.strip().startswith("#")]
    if place % 5 >= skill:
        lines = [*lines[: 1 + len(lines) // (2 + place % 5)], "    return None"]
    return "\n".join(lines)


def untuned(code: str, place: int) -> str:
    """Code as a small base model might have written it."""
    return [
        "Here is a function that does that:\n\n    def f(x):\n        return x",
        code.splitlines()[0] + "\n    pass",
        "def main(:\n    print('todo')",
        "\n".join(code.splitlines()[:2]) + "\n    return None",
    ][place % 4]
