"""Where a run's seconds go: since the order, or since the process began."""

import subprocess
import sys
import time

import pytest

from worker import clock
from worker.clock import Clock


@pytest.fixture(autouse=True)
def no_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "_ordered", None)


def test_what_an_order_waited_for_the_process_is_loading_and_part_of_the_run():
    clock.order_came(time.monotonic() - 50)
    told = Clock().report(warm=False)
    assert told["warm"] is False
    assert 50 <= told["load_seconds"] <= told["seconds"] < 60


def test_the_next_order_begins_anew():
    clock.order_came(time.monotonic() - 50)
    Clock()
    clock.order_came(time.monotonic())
    assert Clock().report(warm=True)["seconds"] < 10


def test_a_process_with_one_job_counts_from_its_start():
    code = "import time; began = time.time(); from worker.clock import Clock; time.sleep(0.3); c = Clock()"
    told = f"{code}; print(c.report(warm=False)['load_seconds'] - (time.time() - began))"
    least = float(subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True).stdout)
    assert -0.2 < least < 10, "Python's own start, and rounding"


def test_parts_add_up():
    clock.order_came(time.monotonic())
    watch = Clock()
    with watch.spending("fetch"):
        pass
    told = watch.report(warm=True)
    assert told["fetch_seconds"] + told["load_seconds"] <= told["seconds"] + 0.1
