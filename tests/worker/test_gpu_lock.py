"""The lock of a GPU, between real processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from worker import gpu_lock

ROOT = Path(__file__).parents[2]
_HOLDER = """
import pathlib, sys, time
from worker.gpu_lock import hold
waited = []
assert hold("test", waited.append, lambda: False, pathlib.Path(sys.argv[1]))
print("held", len(waited), flush=True)
time.sleep(600)
"""


def start(folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True, bufsize=1
    )


def test_the_next_process_waits_until_the_one_before_is_dead_however_it_died(tmp_path: Path) -> None:
    with start(tmp_path) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held 0\n"
        first.send_signal(signal.SIGSTOP)  # still there, though it does nothing
        with start(tmp_path) as second:
            assert second.stdout is not None
            told: list[str] = []
            assert not gpu_lock.hold("test", told.append, lambda: bool(told), tmp_path), "told to stop while waiting"
            assert told == ["Waiting for the GPU: another process of Hone holds it. One worker a GPU is meant to run."]
            assert second.poll() is None
            first.kill()
            assert second.stdout.readline().startswith("held ")
            second.kill()


def release() -> None:
    while gpu_lock._held:
        os.close(gpu_lock._held.popitem()[1])


def test_two_gpus_are_two_locks(tmp_path: Path) -> None:
    for name in ("one", "two", "one"):  # a process that has a lock does not wait for itself
        assert gpu_lock.hold(name, pytest.fail, lambda: False, tmp_path)
    release()


def test_a_link_in_the_locks_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("someone's file")
    (tmp_path / "hone-gpu-x.lock").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic link"):
        gpu_lock.hold("x", pytest.fail, lambda: False, tmp_path)


def test_a_process_without_a_gpu_waits_for_nobody() -> None:
    assert gpu_lock.hold_gpu(pytest.fail, lambda: False)
    assert not gpu_lock._held
