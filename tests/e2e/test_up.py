"""The embedded supervisor, as a process with real parts."""

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from cli import up
from core.broker import QUEUE, make_celery, send_hint
from core.settings import Settings
from tests.waiting import wait_for

ROOT = Path(__file__).parents[2]
READY_SECONDS = 60
#: Serves, and tells on standard output when it is ready.
SERVE = """
import json, sys
from cli.up import up
from core.settings import Settings
sys.exit(up(Settings(), on_ready=lambda url, key: print(json.dumps([url, key]), flush=True)))
"""


@dataclass
class Hone:
    """A running `up`."""

    process: subprocess.Popen[str]
    url: str
    key: str | None
    home: Path
    seen: set[psutil.Process] = field(default_factory=set)

    def part(self, *words: str) -> psutil.Process | None:
        """The child whose command has these words, remembered for the end."""
        for child in psutil.Process(self.process.pid).children():
            self.seen.add(child)
            try:
                if all(any(word in argument for argument in child.cmdline()) for word in words):
                    return child
            except psutil.NoSuchProcess:
                continue
        return None

    def get(self, path: str, key: str | None = None) -> Any:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        with urllib.request.urlopen(urllib.request.Request(self.url + path, headers=headers), timeout=10) as answer:
            return json.load(answer)

    def is_ready(self, status: str = "ready") -> bool:
        try:
            return bool(self.get("/readyz")["status"] == status)
        except OSError:
            return False

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal; nothing of it is left afterwards."""
        self.seen |= set(psutil.Process(self.process.pid).children(recursive=True))
        self.process.send_signal(number)
        code = self.process.wait(30)
        _, alive = psutil.wait_procs(list(self.seen), timeout=5)
        assert alive == []
        return code


PARTS = {"worker": ("-m", "worker"), "api": ("-m", "api"), "valkey": ("valkey-server",)}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return os.environ | {"HONE_HOME": str(tmp_path / "home"), "HONE_PORT": "0", "HONE_POLL_SECONDS": "1"}


@pytest.fixture
def serve(environment: dict[str, str]) -> Iterator[Callable[..., Hone]]:
    """Starts `up` and waits until it is ready."""
    if importlib.util.find_spec("api.main") is None:
        pytest.fail("the API is missing")
    started: list[subprocess.Popen[str]] = []

    def start(**settings: str) -> Hone:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE], cwd=ROOT, env=environment | settings, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "ended before it was ready"
        url, key = json.loads(line)
        return Hone(process, url, key, Path(environment["HONE_HOME"]))

    yield start
    for process in started:
        process.kill()
        process.wait()


def run_up(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SERVE]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_up_serves_brings_back_what_is_killed_and_leaves_nothing(serve: Callable[..., Hone]) -> None:
    hone = serve()
    assert hone.key is not None
    assert hone.get("/v1/models", hone.key)["object"] == "list"
    wait_for(hone.is_ready)
    for name, words in PARTS.items():
        wait_for(lambda words=words: hone.part(*words) is not None)
        victim = hone.part(*words)
        assert victim is not None
        victim.kill()
        wait_for(lambda words=words, victim=victim: hone.part(*words) not in (None, victim))
        wait_for(hone.is_ready, READY_SECONDS)
        assert (hone.home / "logs" / f"{name}.log").exists()
    socket_folder = Settings(home=hone.home).valkey_socket.parent
    assert socket_folder.stat().st_mode & 0o777 == 0o700
    assert hone.stop() == 0
    assert not socket_folder.exists()


def test_a_home_serves_one_up_at_a_time_and_keeps_its_key(
    serve: Callable[..., Hone], environment: dict[str, str]
) -> None:
    hone = serve(HONE_API_KEY="hone-a-key-of-my-own")
    assert hone.key == "hone-a-key-of-my-own"
    second = run_up(environment)
    assert second.returncode == 1
    assert f"in use by another Hone (process {hone.process.pid})" in second.stdout
    assert hone.stop(signal.SIGINT) == 0
    again = serve()
    assert again.key is None
    assert again.get("/v1/models", "hone-a-key-of-my-own")["object"] == "list"
    again.stop()


def test_a_killed_up_takes_its_parts_with_it(serve: Callable[..., Hone]) -> None:
    hone = serve()
    for words in PARTS.values():
        wait_for(lambda words=words: hone.part(*words) is not None)
    assert hone.stop(signal.SIGKILL) == -9
    shutil.rmtree(Settings(home=hone.home).valkey_socket.parent)  # nobody was left to do it


def test_a_port_that_is_taken_is_named(environment: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_up(environment | {"HONE_PORT": str(port)})
    assert done.returncode == 1
    assert f"Can't listen on 127.0.0.1, port {port}: Address already in use" in done.stdout


def test_a_database_that_does_not_answer_is_named(environment: dict[str, str]) -> None:
    done = run_up(environment | {"HONE_DATABASE_URL": "postgresql://me:secret@127.0.0.1:1/hone"})
    assert done.returncode == 1
    assert "The database can't be used" in done.stdout
    assert "secret" not in done.stdout + done.stderr


def test_an_api_that_can_not_start_ends_up_with_its_log(environment: dict[str, str], tmp_path: Path) -> None:
    done = run_up(environment | {"HONE_CATALOGUE": str(tmp_path / "none.toml")})
    assert done.returncode == 1
    assert "The api does not get ready" in done.stdout
    assert "none.toml" in done.stdout


def test_parts_read_the_same_settings(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, port=1234, poll_seconds=0.25, api_key="hone-secret", catalogue=tmp_path / "c")
    made = up.environment(settings)
    code = "from core.settings import Settings; print(Settings().model_dump_json())"
    done = subprocess.run([sys.executable, "-c", code], env=made, capture_output=True, text=True, check=True)
    assert Settings.model_validate_json(done.stdout) == settings.model_copy(update={"api_key": None})


def test_without_valkey_hints_go_through_files(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, redis_url="filesystem://")
    sender, receiver = make_celery(settings), make_celery(settings)
    send_hint(sender, "ftjob-1")
    with receiver.connection_for_read() as connection, connection.SimpleQueue(QUEUE) as queue:
        message = queue.get(timeout=5)
        assert message.payload[0] == ["ftjob-1"]
        message.ack()


def test_a_valkey_is_found_in_the_wheel() -> None:
    found = up.find_valkey()
    assert found is not None
    assert shutil.which(found) == found
    assert len(str(Settings(home=Path(tempfile.gettempdir()) / ("x" * 200)).valkey_socket)) < 107
