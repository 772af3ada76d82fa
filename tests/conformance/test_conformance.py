"""OpenAI's own client, in three versions, sync and async, calls every method with every parameter."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.environments import VERSIONS, NotInstalledError, make_all
from tests.conformance.service import Service, hone

Reports = dict[str, dict[str, Any]]
KINDS = ("sync", "async")


@pytest.fixture(scope="module")
def environments() -> dict[str, Path | NotInstalledError]:
    return make_all()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path):
    folder = tmp_path_factory.mktemp("conformance")
    with hone(folder, f"sqlite:///{shutil.copy(sqlite_template, folder / 'hone.db')}") as made:
        yield made


@pytest.fixture(scope="module")
def reports(environments: dict[str, Path | NotInstalledError], service: Service) -> Reports:
    """What each version that can be installed was told."""
    return service.drive_all({version: python for version, python in environments.items() if isinstance(python, Path)})


@pytest.fixture(params=[f"{version} {kind}" for version in VERSIONS for kind in KINDS])
def report(request: pytest.FixtureRequest, environments, reports: Reports) -> dict[str, Any]:
    version, kind = request.param.split()
    if isinstance(environments[version], NotInstalledError):
        pytest.skip(str(environments[version]))
    assert reports[version]["version"] == version
    return reports[version][kind]


def test_every_case_goes_well_and_every_answer_is_strictly_the_clients_type(report: dict[str, Any]):
    assert report["problems"] == []


def test_no_method_and_no_parameter_of_the_client_is_forgotten(report: dict[str, Any]):
    assert len(report["methods"]) >= 42
    assert report["unused"] == []
