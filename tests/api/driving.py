"""What a user and a worker do, in as few words as the tests need."""

from typing import Any

from sqlalchemy import select
from starlette.testclient import TestClient

from core.storage import Storage
from models import lifecycle
from models.database import Database
from models.lifecycle import Claim
from models.tables import Checkpoint, EvalOutputItem, EvalRun, File, FileImport, FineTunedModel, Job

CHAT = b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}\n'
ITEMS = b'{"item": {"prompt": "add", "completion": "def add(): ..."}}\n{"item": {"prompt": "sub", "completion": "x"}}\n'

EVAL: dict[str, Any] = {
    "name": "python",
    "data_source_config": {"type": "custom", "item_schema": {"type": "object"}, "include_sample_schema": True},
    "testing_criteria": [
        {
            "type": "code_bleu",
            "name": "similar",
            "input": "{{ sample.output_text }}",
            "reference": "{{item.completion}}",
            "pass_threshold": 0.4,
        }
    ],
}


def upload(http: TestClient, content: bytes = CHAT, purpose: str = "fine-tune", name: str = "train.jsonl") -> str:
    """The id of a new file."""
    answer = http.post("/v1/files", data={"purpose": purpose}, files={"file": (name, content)})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def submit(http: TestClient, **fields: Any) -> dict[str, Any]:
    """A new job."""
    body = {"model": "tiny", **fields}
    body.setdefault("training_file", upload(http))
    answer = http.post("/v1/fine_tuning/jobs", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def failed_import(database: Database) -> str:
    """The id of an import that found nothing, of the project that has files."""
    with database.write() as session:
        made = FileImport(
            project_id=session.scalars(select(File.project_id)).first(),
            status="failed",
            asked={
                "dataset": "org/data", "config": None, "split": "train", "revision": None, "purpose": "fine-tune",
                "columns": {}, "skip_bad_rows": False,
            },
            error={"message": "There is none.", "param": None, "code": "dataset_not_found", "details": None},
        )  # fmt: skip
        session.add(made)
        session.flush()
        return made.id


def run_body(source: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """The body of a new run."""
    data_source = {
        "type": "completions",
        "model": "tiny",
        "input_messages": {
            "type": "template",
            "template": [
                {"type": "message", "role": "user", "content": {"type": "input_text", "text": "{{item.prompt}}"}}
            ],
        },
        "sampling_params": {"max_completion_tokens": 64, "temperature": 0.0},
        "source": source,
    }
    return {"data_source": data_source, **fields}


def claim(database: Database) -> Claim:
    """Take the next job as a worker does."""
    with database.write() as session:
        taken = lifecycle.claim(session, "worker", 60)
    assert taken is not None
    return taken


def fail_job(database: Database, error: Exception) -> None:
    """Take the next job and fail."""
    taken = claim(database)
    with database.write() as session:
        lifecycle.fail(session, taken, error)  # type: ignore[arg-type]


def train(database: Database, storage: Storage, *, adapter: bytes = b"PK-adapter") -> Claim:
    """Run the next job to its good end: two steps, a checkpoint, two result files and a model."""
    taken = claim(database)
    with database.write() as session:
        for step in (1, 2):
            lifecycle.record_step(session, taken, step, {"train_loss": 2.0 / step}, total_steps=2)
        metrics = {"train_loss": 1.0, "train_accuracy": 0.5, "valid_loss": 1.5}
        stored = storage.put(f"jobs/{taken.job_id}/1-1/checkpoint-2.zip", [b"PK-checkpoint"])
        row = Checkpoint(
            job_id=taken.job_id,
            step=2,
            storage_key=stored.key,
            bytes=stored.bytes,
            sha256=stored.sha256,
            metrics=metrics,
        )
        lifecycle.record_checkpoint(session, taken, row)
    with database.write() as session:
        job = session.get_one(Job, taken.job_id)
        files = [
            _artifact(storage, job, "step_metrics.csv", b"step,train_loss\n1,2.0\n"),
            _artifact(storage, job, "adapter.zip", adapter),
        ]
        name = f"ft:{job.model}:hone::{job.id[-8:]}"
        lifecycle.succeed(session, taken, files, fine_tuned_model=name, trained_tokens=7)
        session.add(
            FineTunedModel(
                id=name,
                project_id=job.project_id,
                job_id=job.id,
                base_model=job.model,
                prompt_template="chat",
                adapter_file_id=files[1].id,
            )
        )
    return taken


def _artifact(storage: Storage, job: Job, name: str, content: bytes) -> File:
    from core.ids import new_id

    stored = storage.put(f"jobs/{job.id}/1-1/{name}", [content])
    return File(
        id=new_id("file-"),
        project_id=job.project_id,
        filename=name,
        purpose="fine-tune-results",
        bytes=stored.bytes,
        sha256=stored.sha256,
        storage_key=stored.key,
        job_id=job.id,
    )


def evaluate(database: Database, storage: Storage) -> Claim:
    """Run the next evaluation to its good end: one item passes, one fails."""
    taken = claim(database)
    with database.write() as session:
        job = session.get_one(Job, taken.job_id)
        run = session.get_one(EvalRun, taken.job_id)
        items = [
            EvalOutputItem(
                run_id=run.id,
                position=position,
                status="pass" if score >= 0.4 else "fail",
                item={"prompt": prompt, "completion": "x"},
                sample={
                    "output_text": "```x```",
                    "code": "x",
                    "finish_reason": "fence",
                    "prompt_tokens": 5,
                    "tokens": 3,
                },
                base=None,
                results={
                    "results": [
                        {
                            "name": "similar",
                            "type": "code_bleu",
                            "score": score,
                            "passed": score >= 0.4,
                            "parts": {"ngram": 0.5, "weighted_ngram": 0.5, "syntax": 0.5, "dataflow": 0.5},
                            "parse": "ok",
                            "base": None,
                        }
                    ]
                },
            )
            for position, (prompt, score) in enumerate([("add", 0.75), ("sub", 0.25)])
        ]
        lifecycle.replace_items(session, taken, run, items)
        report = {
            "samples": 2,
            "criteria": [{"name": "similar", "model": {"codebleu": 0.5, "passed": 1, "failed": 1}, "base": None}],
            "usage": [
                {"model": job.model, "answers": 2, "prompt_tokens": 10, "completion_tokens": 6},
                {"model": "its-base", "answers": 2, "prompt_tokens": 10, "completion_tokens": 9},
            ],
            "generation": {"seconds": 1.0, "output_tokens": 15},
        }
        lifecycle.succeed(session, taken, [_artifact(storage, job, "scores.json", b"{}")], report=report)
    return taken


def error_of(answer: Any) -> dict[str, Any]:
    """An error in OpenAI's shape, and nothing beside it but what is ours, under ``hone``."""
    body = answer.json()
    assert set(body) == {"error"}, body
    assert set(body["error"]) - {"hone"} == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"].startswith("req_")
    return dict(body["error"])
