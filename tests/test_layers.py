"""What each part must not load, in fresh processes: the API runs without torch, the worker without FastAPI."""

import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import api
import core
import models

ROOT = Path(__file__).parents[1]
HEAVY = ["torch", "transformers", "peft", "trl", "bitsandbytes", "datasets"]
WEB = ["fastapi", "starlette", "uvicorn"]
#: The worker's modules that claim, supervise and speak; the others run in the child.
LIGHT = ["app", "slot", "supervise", "workspace", "protocol"]

PROBE = """
import importlib, json, sys
modules, banned = json.loads(sys.argv[1])
for name in modules:
    importlib.import_module(name)
print(json.dumps([name for name in banned if name in sys.modules]))
"""


def loaded(modules: list[str], banned: list[str]) -> list[str]:
    """Which of ``banned`` a fresh interpreter loads with ``modules``; a module that is missing fails."""
    made = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps([modules, banned])],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    return json.loads(made.stdout)


def all_of(package) -> list[str]:
    names = [info.name for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")]
    assert names, package.__name__
    return [name for name in names if not name.endswith("__main__")]


def test_the_api_loads_no_torch():
    modules = all_of(api)
    assert "api.main" in modules
    assert loaded(modules, HEAVY) == []


def test_the_worker_that_supervises_loads_neither_torch_nor_a_web_framework():
    assert loaded([f"worker.{name}" for name in LIGHT], HEAVY + WEB) == []


@pytest.mark.parametrize("module", ["worker.train", "worker.evaluate"])
def test_the_child_loads_no_web_framework_no_database_and_no_broker(module):
    assert loaded([module], [*WEB, "sqlalchemy", "celery"]) == []


def test_core_knows_no_database():
    assert loaded(all_of(core), [*HEAVY, *WEB, "sqlalchemy", "alembic"]) == []


def test_models_know_no_web_framework_and_no_torch():
    assert loaded(all_of(models), HEAVY + WEB) == []


def test_the_command_line_starts_without_torch():
    assert loaded(["cli.main"], HEAVY) == []


def test_a_module_that_is_missing_fails_the_probe():
    with pytest.raises(AssertionError, match="No module named"):
        loaded(["api.nowhere"], HEAVY)
    assert loaded(["json"], ["json"]) == ["json"], "and one that is loaded is found"
