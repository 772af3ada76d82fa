"""`hone doctor`: each thing that can be missing, and its cure."""

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli import doctor
from cli.main import app
from core.settings import Settings, get_settings

HUB = '["org/gated"]\nsource = "hub"\nrepo = "org/gated"\nrevision = "' + "0" * 40 + '"\n'


@pytest.fixture
def driver(tmp_path: Path, monkeypatch) -> Path:
    """A command `nvidia-smi` of this test's own, first on the PATH."""
    command = tmp_path / "bin" / "nvidia-smi"
    command.parent.mkdir()
    command.touch(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return command


def test_a_driver_that_sees_no_gpu_is_wrong(driver: Path, tmp_path: Path):
    driver.write_text("#!/bin/sh\necho 'Failed to initialize NVML: Driver/library version mismatch'\nexit 18\n")
    check = doctor._driver(Settings(home=tmp_path))
    assert not check.good
    assert "reboot" in check.cure


def test_a_torch_that_does_not_see_the_drivers_gpu_is_wrong(driver: Path, tmp_path: Path):
    driver.write_text("#!/bin/sh\necho '0, GPU-a, NVIDIA L4, 23034, 8.9'\n")
    driven = doctor._driver(Settings(home=tmp_path))
    assert (driven.good, driven.found) == (True, "1 x NVIDIA L4, 22 GB")
    check = doctor._torch(Settings(home=tmp_path))
    assert not check.good
    assert "built for CUDA" in check.cure


@pytest.mark.parametrize(("token", "words"), [(None, "HF_TOKEN is not set"), ("hf_x", "can't be reached")])
def test_a_gated_model_says_what_it_needs(tmp_path: Path, monkeypatch, token: str | None, words: str):
    if token is None:
        monkeypatch.delenv("HF_TOKEN", raising=False)
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    (tmp_path / "catalogue.toml").write_text(HUB)
    check = doctor._models(Settings(home=tmp_path, catalogue=tmp_path / "catalogue.toml"))
    assert not check.good
    assert words in check.found
    assert "licence" in check.cure
    fetched = tmp_path / "models" / "hub" / "models--org--gated" / "snapshots" / ("0" * 40)
    fetched.mkdir(parents=True)
    (fetched / "config.json").write_text("{}")
    assert doctor._models(Settings(home=tmp_path, catalogue=tmp_path / "catalogue.toml")).found == "org/gated: here"


def test_json_tells_each_check_and_the_service_that_is_asked_for(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HONE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HONE_BASE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("HONE_API_KEY", "hone-x")
    get_settings.cache_clear()
    result = CliRunner().invoke(app, ["doctor", "--json"])
    get_settings.cache_clear()
    assert result.exit_code == 1
    checks = {check["name"]: check for check in json.loads(result.stdout)}
    assert {"driver", "memory", "disk", "keys", "catalogue", "models"} <= checks.keys()
    assert [name for name, check in checks.items() if not check["good"]] == ["service"]
