"""The short run of tests/chaos/run.py: every kind of fault is dealt at least once. `make chaos` does the long one."""

from pathlib import Path

import pytest

from tests.chaos.faults import Faults
from tests.chaos.run import run

# More than the slowest shuffled deck needs on two busy cores; the run itself takes some 45 s.
pytestmark = pytest.mark.timeout(240)


def test_acknowledged_jobs_are_carried_out_once_whatever_dies(tmp_path: Path):
    report = run(tmp_path, seed=4, jobs=16, faults=16)
    assert report.is_clean, str(report)
    assert sum(report.faults.values()) >= 8, str(report)
    assert set(report.faults) <= set(Faults.WEIGHTS)
