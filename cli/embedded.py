"""A Hone of the demo's own: `hone up` as a child process, in a temporary HONE_HOME, on a free port."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from worker.parent import with_parent

#: Migrations, Valkey, API and worker take some five seconds on two cores; a busy machine gets patience.
_READY_SECONDS = 120
#: `hone up` drains its worker before it ends; the demo has nothing to drain for.
_STOP_SECONDS = 60


class DemoError(Exception):
    """A step of the demo went wrong; the message says which, and why."""


class EmbeddedHone:
    """A context: Hone is ready inside of it and gone after it.

    The temporary folder goes with it, unless the block ends by an error: then its logs are what explains the error.
    """

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="hone-demo-"))
        self.base_url = ""
        self.api_key = ""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def logs(self) -> Path:
        """Folder of the logs of API, worker, Valkey and the supervisor."""
        return self.home / "logs"

    def __enter__(self) -> "EmbeddedHone":
        try:
            self._start()
            self._wait_until_ready()
        except BaseException as error:
            self._end(keep=not isinstance(error, KeyboardInterrupt))
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end(keep=error is not None and not isinstance(error, KeyboardInterrupt))

    def _start(self) -> None:
        self.logs.mkdir()
        command = [sys.executable, "-m", "cli.main", "up", "--port", "0", "--ready-file", str(self.home / "ready.json")]
        with (self.logs / "up.log").open("wb") as log:
            # A session of its own: Ctrl-C reaches the demo alone, which then stops Hone in its order.
            self._process = subprocess.Popen(  # noqa: S603 - our own command
                with_parent(command),
                env=_environment(os.environ, self.home),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        ready = self.home / "ready.json"
        deadline = time.monotonic() + _READY_SECONDS
        while not ready.exists():
            if (code := self._process.poll()) is not None:
                raise DemoError(f"Hone did not start (exit code {code}):\n{self._last_lines()}")
            if time.monotonic() > deadline:
                raise DemoError(f"Hone was not ready after {_READY_SECONDS} s:\n{self._last_lines()}")
            time.sleep(0.1)
        told = json.loads(ready.read_text(encoding="utf-8"))
        self.base_url, self.api_key = told["base_url"], told["api_key"]

    def _last_lines(self) -> str:
        return "\n".join((self.logs / "up.log").read_text(encoding="utf-8", errors="replace").splitlines()[-10:])

    def _end(self, *, keep: bool) -> None:
        """Stop Hone and clean up. A second Ctrl-C does not interrupt this: it would leave processes behind."""
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            if self._process is not None:
                _stop(self._process)
            if not keep:
                shutil.rmtree(self.home, ignore_errors=True)
        finally:
            signal.signal(signal.SIGINT, before)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the supervisor to stop everything. Killed, it takes its children along: they die with their parent."""
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _environment(present: Mapping[str, str], home: Path) -> dict[str, str]:
    """The caller's environment without its settings of Hone: the demo touches no database or storage of theirs."""
    kept = {name: value for name, value in present.items() if not name.startswith("HONE_")}
    # Python would look for a module `cli` in the user's present folder first.
    return kept | {"HONE_HOME": str(home), "PYTHONSAFEPATH": "1"}
