"""One Hone and one set of environments for all of these tests."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.environments import NotInstalledError, make_all
from tests.conformance.service import Service, hone


@pytest.fixture(scope="session")
def environments() -> dict[str, Path | NotInstalledError]:
    """The Python of each version of the client, or why there is none."""
    return make_all()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Iterator[Service]:
    """A Hone on SQLite."""
    folder = tmp_path_factory.mktemp("conformance")
    with hone(folder, f"sqlite:///{shutil.copy(sqlite_template, folder / 'hone.db')}") as made:
        yield made
