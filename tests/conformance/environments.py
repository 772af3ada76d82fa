"""Virtual environments with one version of OpenAI's client each, made when they are first needed, below ``.venv``."""

import fcntl
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

#: The newest of each major that is in use; 3.x sends by httpx2, the others by httpx.
VERSIONS = ("1.109.1", "2.54.0", "3.54.0")
_LONGEST = 240


class NotInstalledError(Exception):
    """A version that can't be had on this machine; the message says why."""


def make_all() -> dict[str, Path | NotInstalledError]:
    """The Python of each version's environment, or why there is none. Made at once: most of the time is waiting."""
    with ThreadPoolExecutor(len(VERSIONS)) as pool:
        return dict(zip(VERSIONS, pool.map(make, VERSIONS), strict=True))


def make(version: str) -> Path | NotInstalledError:
    """The Python of one version's environment, or why there is none."""
    folder = Path(sys.prefix) / f"openai-{version}"
    python, ready = folder / "bin" / "python", folder / "ready"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run of the tests in the same checkout
        if ready.exists():
            return python
        shutil.rmtree(folder, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python), "install"]
        commands = [
            [sys.executable, "-m", "venv", "--without-pip", str(folder)],
            [*pip, "--quiet", "--retries", "1", f"openai=={version}"],
        ]
        try:
            for command in commands:
                subprocess.run(command, check=True, capture_output=True, text=True, timeout=_LONGEST)
        except subprocess.CalledProcessError as error:
            lines = error.stderr.strip().splitlines() or ["no reason given"]
            return NotInstalledError(f"openai {version} can't be installed here: {lines[-1]:.300}")
        except subprocess.TimeoutExpired:
            return NotInstalledError(f"openai {version} can't be installed here: pip took over {_LONGEST} s")
        ready.touch()
    return python
