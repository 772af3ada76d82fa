"""OpenAI's own client, in three versions, sync and async, calls every method with every parameter."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.differences import DIFFERENCES
from tests.conformance.environments import VERSIONS, NotInstalledError
from tests.conformance.service import Service
from tests.conformance.specification import Specification
from tests.conformance.table import KINDS, PAGE, page

#: Making the environments and driving the clients is the first test's; it takes 45 s where two cores are free.
pytestmark = pytest.mark.timeout(600)

Environments = dict[str, Path | NotInstalledError]
Reports = dict[str, dict[str, Any]]

#: Path of OpenAI's OpenAPI document as JSON, or of a part of it: answers are held against it too.
SPECIFICATION = "OPENAI_SPECIFICATION"


@pytest.fixture(scope="module")
def reports(environments: Environments, service: Service) -> Reports:
    """What each version that can be installed was told."""
    return service.drive_all({version: python for version, python in environments.items() if isinstance(python, Path)})


@pytest.fixture(params=[f"{version} {kind}" for version in VERSIONS for kind in KINDS])
def report(request: pytest.FixtureRequest, environments: Environments, reports: Reports) -> dict[str, Any]:
    """What one kind of one version's client was told."""
    version, kind = request.param.split()
    if isinstance(environments[version], NotInstalledError):
        pytest.skip(str(environments[version]))
    assert reports[version]["version"] == version
    found: dict[str, Any] = reports[version][kind]
    return found


def test_every_case_goes_well_and_every_answer_is_strictly_of_the_clients_type(report: dict[str, Any]):
    assert report["problems"] == []
    assert len(report["exchanges"]) > 300


def test_no_method_and_no_parameter_of_the_client_is_forgotten(report: dict[str, Any]):
    assert len(report["methods"]) >= 42
    assert report["unused"] == []


def test_every_difference_from_the_clients_types_that_is_told_is_there(report: dict[str, Any]):
    assert set(report["differences"]) == set(DIFFERENCES)


def test_the_page_says_what_the_clients_were_told(environments: Environments, reports: Reports):
    for python in environments.values():
        if isinstance(python, NotInstalledError):
            pytest.skip(str(python))
    assert PAGE.read_text(encoding="utf-8") == page(reports), "run `python -m tests.conformance` and look at the change"


@pytest.mark.skipif(SPECIFICATION not in os.environ, reason=f"{SPECIFICATION} names no copy of OpenAI's document")
def test_every_answer_fits_openais_own_document(report: dict[str, Any]):
    document = Specification(Path(os.environ[SPECIFICATION]))
    assert list(document.problems(report["exchanges"])) == []
