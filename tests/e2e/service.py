"""A whole Hone for a test: `hone up` as a process, its address and key as a script learns them, and its processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from openai import OpenAI

from core.settings import Settings

ROOT = Path(__file__).parents[2]
READY_SECONDS = 60
#: Each look costs the API some milliseconds, which two cores would rather train with.
POLL_SECONDS = 0.1
ENDED = ("succeeded", "failed", "cancelled")

#: Behind the interpreter, each part's command begins like this.
PARTS = {"api": ["-m", "api"], "worker": ["-m", "worker"], "training": ["-m", "worker.warm"]}


def wait_for(condition: Callable[[], object], seconds: float = 20) -> None:
    """Look until the condition is true; fail after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(POLL_SECONDS)


def write_catalogue(folder: Path, model: Path) -> Path:
    """A catalogue that lists ``model`` as ``tiny``."""
    path = folder / "catalogue.toml"
    path.write_text(f'[tiny]\nsource = "folder"\npath = "{model}"\ndescription = "A tiny Llama."\n')
    return path


def train_lines(samples: int) -> bytes:
    """A dataset of instructions with samples of different lengths."""
    rows = [
        {
            "instruction": f"Write a function that adds {n}" + ", please" * (n % 5),
            "output": f"def add_{n}(x):\n    total = x + {n}\n" + "    # more\n" * (n % 4) + "    return total\n",
        }
        for n in range(samples)
    ]
    return as_lines(rows)


def as_lines(rows: Collection[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def tiny_options(**training: Any) -> dict[str, Any]:
    """`extra_body` of a job on a small processor: float32, for bfloat16 may be emulated here."""
    return {"hone": {"training": {"precision": "float32", **training}}}


class Service:
    """A running `hone up`."""

    def __init__(self, process: "subprocess.Popen[bytes]", ready: dict[str, Any], environment: dict[str, str]) -> None:
        self.process = process
        self.base_url, self.key = ready["base_url"], ready["api_key"]
        self.environment = environment
        self.home = Path(environment["HONE_HOME"])
        #: Every process that was ever looked at; none may be left at the end.
        self.seen: set[psutil.Process] = {psutil.Process(process.pid)}

    def client(self, key: str | None = None) -> OpenAI:
        return OpenAI(base_url=self.base_url, api_key=key or self.key, max_retries=0, timeout=30)

    def processes(self) -> list[psutil.Process]:
        """Every process below `hone up`."""
        found = psutil.Process(self.process.pid).children(recursive=True)
        self.seen |= set(found)
        return found

    def part(self, name: str) -> psutil.Process | None:
        """The API, the worker, the worker's child that trains, or Valkey."""
        return next((process for process in self.processes() if _is(process, name)), None)

    def kill(self, name: str) -> None:
        """SIGKILL a part, and wait until another process has taken its place."""
        victim = self.part(name)
        assert victim is not None
        victim.kill()
        wait_for(lambda: self.part(name) not in (None, victim))

    def hone(self, *arguments: str) -> str:
        """What `hone` with these arguments prints, run beside the service."""
        command = [sys.executable, "-m", "cli.main", *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=60, check=True
        )
        return done.stdout.strip()

    def stop(self) -> None:
        """Tell it to stop; it ends well, and nothing of it is left."""
        self.processes()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0
        _, alive = psutil.wait_procs(list(self.seen), timeout=5)
        assert alive == []
        assert not Settings(home=self.home).valkey_socket.parent.exists()


def _is(process: psutil.Process, name: str) -> bool:
    try:
        command = process.cmdline()
    except psutil.NoSuchProcess:
        return False
    if name == "valkey":  # it writes its socket behind its name
        return bool(command) and "valkey-server" in command[0]
    # Exactly: before it becomes its part, a process is `-m worker.parent` with the part's command behind it.
    return command[1:3] == PARTS[name]


def log_of(service: Service, name: str) -> str:
    """The end of a part's log, for a failing test to show."""
    return (service.home / "logs" / f"{name}.log").read_text(errors="replace")[-3000:]


@contextmanager
def served(home: Path, catalogue: Path, **settings: str) -> Iterator[Service]:
    """Start `hone up` and wait for its ready file; whatever happens, it is gone at the end."""
    home.mkdir(exist_ok=True)
    ready = home / "ready.json"
    ready.unlink(missing_ok=True)
    environment = os.environ | {
        "HONE_HOME": str(home),
        "HONE_PORT": "0",
        "HONE_CATALOGUE": str(catalogue),
        "OMP_NUM_THREADS": "1",
        **settings,
    }
    command = [sys.executable, "-m", "cli.main", "up", "--ready-file", str(ready)]
    with (home / "up.log").open("ab") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        wait_for(lambda: ready.exists() or process.poll() is not None, READY_SECONDS)
        assert process.poll() is None, (home / "up.log").read_text()
        yield Service(process, json.loads(ready.read_text()), environment)
    finally:
        process.kill()  # its parts die with it
        process.wait()
