"""A version that can't be installed is skipped with pip's reason, and tried again the next time."""

import sys
from pathlib import Path

import pytest

from tests.conformance.environments import NotInstalledError, make


def test_a_version_that_can_not_be_had_says_why_and_leaves_nothing_that_looks_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    for name, value in {"PIP_CONFIG_FILE": "/dev/null", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}.items():
        monkeypatch.setenv(name, value)
    for _ in range(2):
        found = make("3.54.0")
        assert isinstance(found, NotInstalledError)
        assert str(found).startswith("openai 3.54.0 can't be installed here: ERROR: ")
        assert "openai==3.54.0" in str(found)
        assert not (tmp_path / "openai-3.54.0" / "ready").exists()
