"""`hone files|jobs|evals|adapters` against a real API: answers for people and programs, and exit codes for scripts."""

import json
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from sqlalchemy import select
from typer.testing import CliRunner

import cli.files
import cli.jobs
from api.main import create_app
from cli.exits import Exit
from cli.main import app
from core.errors import TrainingError
from core.settings import Settings, get_settings
from core.storage import Storage
from models import lifecycle
from models.database import Database
from models.status import JobStatus
from models.tables import Job
from tests.api.conftest import NO_BROKER, served
from tests.api.driving import ITEMS, claim, evaluate, train
from tests.conftest import make_key
from tests.core.test_hub_child import jsonl
from tests.e2e.service import train_lines
from tests.hub_server import fake_hub
from tests.waiting import wait_for


@dataclass(frozen=True)
class Hone:
    """A Hone behind a socket, and the command that talks to it."""

    invoke: Callable[..., Result]
    database: Database
    storage: Storage

    def json(self, *arguments: str) -> Any:
        result = self.invoke(*arguments, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)


@pytest.fixture(scope="module")
def address(tmp_path_factory, sqlite_template, tiny_llama) -> Iterator[tuple[str, str, Settings]]:
    """One API for the module: its address and its key."""
    folder = tmp_path_factory.mktemp("remote")
    (folder / "catalogue.toml").write_text(f'[tiny]\nsource = "folder"\npath = "{tiny_llama}"\n')
    url = f"sqlite:///{shutil.copy(sqlite_template, folder / 'hone.db')}"
    database = Database(url)
    key = make_key(database)
    database.dispose()
    settings = Settings(
        home=folder, database_url=url, storage_url=(folder / "storage").as_uri(), redis_url=NO_BROKER,
        catalogue=folder / "catalogue.toml", hub_datasets="org/*",
    )  # fmt: skip
    with served(create_app(settings)) as base_url:
        yield base_url, key, settings


@pytest.fixture
def hone(address, monkeypatch) -> Iterator[Hone]:
    """The command, pointed at the module's API by environment alone."""
    base_url, key, settings = address
    monkeypatch.setenv("HONE_BASE_URL", base_url)
    monkeypatch.setenv("HONE_API_KEY", key)
    monkeypatch.setenv("HONE_HOME", str(settings.home / "client"))
    monkeypatch.setenv("HONE_CATALOGUE", str(settings.catalogue))
    monkeypatch.setattr(cli.jobs, "_POLL_SECONDS", 0.05)
    get_settings.cache_clear()
    database = Database(settings.database_url or "")
    storage = Storage(settings.resolved_storage_url)
    yield Hone(lambda *arguments: CliRunner().invoke(app, list(arguments)), database, storage)
    database.dispose()
    get_settings.cache_clear()


@pytest.fixture
def dataset(tmp_path) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_bytes(train_lines(20))
    return path


def evaluate_when_queued(hone: Hone) -> None:
    """Be the worker of an evaluation that is about to be ordered."""

    def is_queued() -> bool:
        with hone.database.read() as session:
            return session.scalar(select(Job.id).where(Job.status == JobStatus.QUEUED)) is not None

    wait_for(is_queued, 120)
    evaluate(hone.database, hone.storage)


def finish(hone: Hone, adapter: bytes = b"adapter") -> None:
    train(hone.database, hone.storage, adapter=adapter)


def test_a_file_is_checked_here_without_a_hone(hone: Hone, dataset: Path, tmp_path: Path, monkeypatch):
    monkeypatch.delenv("HONE_API_KEY")
    monkeypatch.setenv("HONE_BASE_URL", "http://127.0.0.1:1")
    result = hone.invoke("files", "check", str(dataset), "--validation", str(dataset))
    assert result.exit_code == Exit.GOOD
    assert "20 samples, format instruction (jsonl)" in result.output
    assert "20 training samples are in the validation file" in result.output
    bad = tmp_path / "bad.csv"
    bad.write_text("prompt,completion\na,b\nc,\n[red]d,e,f\n")
    result = hone.invoke("files", "check", str(bad))
    assert result.exit_code == Exit.BAD_DATASET
    assert "2 problems: 1 missing_field, 1 too_many_cells" in result.output
    assert "completion" in result.output
    report = hone.invoke("files", "check", str(bad), "--json")
    assert report.exit_code == Exit.BAD_DATASET
    assert [problem["line"] for problem in json.loads(report.stdout)["problems"]["first"]] == [3, 4]
    for arguments in (["--template", "mine"], ["--max-seq-length", "3"]):
        assert hone.invoke("files", "check", str(dataset), *arguments).exit_code == Exit.USAGE
    assert hone.invoke("files", "check", str(tmp_path / "none")).exit_code == Exit.USAGE
    unknown = hone.invoke("files", "check", str(dataset), "--model", "unknown")
    assert unknown.exit_code == Exit.REFUSED
    assert "not in this server's catalogue" in unknown.stderr


def test_the_check_here_and_the_servers_preflight_agree(hone: Hone, dataset: Path):
    here = hone.json("files", "check", str(dataset), "--model", "tiny", "--max-seq-length", "64")
    assert here["lengths"]["unit"] == "tokens"
    again = hone.invoke("files", "check", str(dataset), "--model", "tiny", "--max-seq-length", "64")
    assert "cut at 64 (as asked)" in again.output
    assert "█" in again.output
    from openai import OpenAI

    from cli.remote import connect
    from tests.waiting import wait_for

    file_id = hone.json("files", "upload", str(dataset))["id"]
    client: OpenAI = connect()
    found: dict[str, Any] = {}

    def ended() -> bool:
        path = f"/files/{file_id}/preflight?model=tiny&max_seq_length=64"
        found.update(client.get(path, cast_to=object))  # type: ignore[call-overload]
        return found["status"] == "completed"

    wait_for(ended, 180)
    assert found["report"] == here


def test_files_go_up_whole_and_in_parts_and_are_listed(hone: Hone, dataset: Path, monkeypatch):
    whole = hone.invoke("files", "upload", str(dataset)).stdout.strip()
    monkeypatch.setattr(cli.files, "_WHOLE_BYTES", 1000)
    parts = hone.invoke("files", "upload", str(dataset)).stdout.strip()
    assert whole != parts
    files = {file["id"]: file for file in hone.json("files", "ls")}
    assert files[whole]["bytes"] == files[parts]["bytes"] == dataset.stat().st_size
    assert files[whole]["hone"]["sha256"] == files[parts]["hone"]["sha256"]
    listed = hone.invoke("files", "ls", "--purpose", "fine-tune").output
    assert whole in listed
    assert "train.jsonl" in listed
    dataset.write_text("nothing\n")
    refused = hone.invoke("files", "upload", str(dataset))
    assert refused.exit_code == Exit.REFUSED
    assert "line 1: is not JSON" in refused.stderr
    assert "request req_" in refused.stderr


def test_a_dataset_is_imported_by_its_id(hone: Hone, monkeypatch):
    monkeypatch.setattr(cli.files, "_POLL_SECONDS", 0.05)
    rows = [{"question": f"q{n}", "answer": "a" if n else ""} for n in range(4)]
    with fake_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        old = hub.add("org/data", {"main/test.jsonl": jsonl(rows)}, revision="v1")
        hub.add("org/data", {"README.md": b""})
        command = ["files", "import", "org/data", "--split", "test", "--revision", "v1"]
        refused = hone.invoke(*command)
        assert refused.exit_code == Exit.REFUSED
        assert "question, answer" in refused.stderr
        named = [*command, "--column", "prompt=question", "--column", "completion=answer"]
        refused = hone.invoke(*named, "--json")
        assert refused.exit_code == Exit.BAD_DATASET
        assert json.loads(refused.stdout)["error"]["hone"]["report"]["problems"]["count"] == 1
        assert "1 row of 4" in refused.stderr
        file_id = hone.invoke(*named, "--skip-bad-rows").stdout.strip()
        made = hone.json(*named, "--skip-bad-rows")
        files = {file["id"]: file["hone"] for file in hone.json("files", "ls")}
        assert files[file_id]["source"]["commit"] == files[made["id"]]["source"]["commit"] == old
        assert made["hone"]["report"]["samples"] == 3
        forbidden = hone.invoke("files", "import", "other/data")
        assert forbidden.exit_code == Exit.REFUSED
        assert "org/*" in forbidden.stderr
        assert hone.invoke(*command, "--column", "prompt").exit_code == Exit.USAGE


def test_a_job_is_estimated_submitted_followed_and_shown(hone: Hone, dataset: Path):
    create = ["jobs", "create", "--file", str(dataset), "--model", "tiny", "--epochs", "2", "--set", "lora.r=4"]
    found = hone.json(*create, "--set", "data.prompt_template=none", "--estimate")
    assert found["hyperparameters"]["n_epochs"] == 2
    assert found["hone"]["data"]["prompt_template"] == "none"
    told = hone.invoke(*create, "--estimate").output
    assert "steps" in told
    assert "A guess" in told
    job_id = hone.invoke(*create, "--suffix", "mine").stdout.strip()
    assert hone.json("jobs", "show", job_id)["hone"]["lora"]["r"] == 4
    listed = hone.invoke("jobs", "ls").output
    assert job_id in listed
    assert "queued" in listed
    worker = threading.Timer(0.3, finish, [hone])
    worker.start()
    followed = hone.invoke("jobs", "follow", job_id)
    worker.join()
    assert followed.exit_code == Exit.GOOD, followed.output
    assert "steps 2/2" in followed.output
    assert "succeeded" in followed.output
    lines = [json.loads(line) for line in hone.invoke("jobs", "follow", job_id, "--json").stdout.splitlines()]
    assert [line.get("train_loss") for line in lines[:2]] == [2.0, 1.0]
    assert lines[-1]["status"] == "succeeded"
    shown = hone.invoke("jobs", "show", job_id).output
    assert f"hone adapters pull {job_id}" in shown
    assert "lora.r = 4" in shown
    assert "tiny" in hone.invoke("jobs", "models").output


def test_the_exit_code_says_how_a_job_ended(hone: Hone, dataset: Path):
    create = ["jobs", "create", "--file", str(dataset), "--model", "tiny"]
    failing = hone.invoke(*create).stdout.strip()
    taken = claim(hone.database)
    with hone.database.write() as session:
        lifecycle.fail(session, taken, TrainingError("the GPU is full", code="out_of_memory"))
    result = hone.invoke("jobs", "follow", failing)
    assert result.exit_code == Exit.FAILED
    assert "the GPU is full" in result.output

    paused = hone.invoke(*create).stdout.strip()
    assert "paused" in hone.invoke("jobs", "pause", paused).output
    assert hone.invoke("jobs", "follow", paused).exit_code == Exit.PAUSED
    assert hone.json("jobs", "resume", paused)["status"] == "queued"
    assert "cancelled" in hone.invoke("jobs", "cancel", paused).output
    assert hone.invoke("jobs", "follow", paused).exit_code == Exit.CANCELLED
    again = hone.invoke("jobs", "cancel", paused)
    assert again.exit_code == Exit.REFUSED
    assert "cancelled" in again.stderr

    assert hone.invoke("jobs", "show", "ftjob-none").exit_code == Exit.REFUSED
    assert hone.invoke("jobs", "create", "--file", "nothing", "--model", "tiny").exit_code == Exit.USAGE
    assert hone.invoke(*create, "--set", "lora.r").exit_code == Exit.USAGE
    assert hone.invoke(*create, "--set", "lora.r=0").exit_code == Exit.REFUSED


def test_no_hone_and_no_key_have_codes_of_their_own(hone: Hone, monkeypatch):
    monkeypatch.setenv("HONE_BASE_URL", "http://127.0.0.1:1/v1")
    monkeypatch.setattr("openai._base_client.BaseClient._calculate_retry_timeout", lambda *_, **__: 0)
    result = hone.invoke("jobs", "ls")
    assert result.exit_code == Exit.UNREACHABLE
    assert "http://127.0.0.1:1/v1/" in result.stderr
    monkeypatch.setenv("HONE_API_KEY", "")
    result = hone.invoke("jobs", "ls")
    assert result.exit_code == Exit.REFUSED
    assert "HONE_API_KEY" in result.stderr


def test_an_evaluation_is_run_and_shown(hone: Hone, tmp_path: Path, monkeypatch):
    items = tmp_path / "items.jsonl"
    items.write_bytes(ITEMS)
    worker = threading.Thread(target=evaluate_when_queued, args=[hone])
    worker.start()
    arguments = ["evals", "run", "--model", "tiny", "--items", str(items), "--prompt", "{{item.prompt}}"]
    result = hone.invoke(*arguments)
    worker.join()
    assert result.exit_code == Exit.GOOD, result.output
    assert "0.500" in result.output
    evals = hone.json("evals", "ls")
    runs = hone.json("evals", "show", evals[0]["id"])
    assert hone.json("evals", "show", evals[0]["id"], runs[0]["id"])["status"] == "completed"
    assert runs[0]["id"] in hone.invoke("evals", "show", evals[0]["id"]).output


def adapter(files: dict[str, bytes]) -> bytes:
    import hashlib

    manifest = {"files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}}
    out = BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in {**files, "manifest.json": json.dumps(manifest).encode()}.items():
            archive.writestr(name, data)
    return out.getvalue()


def test_an_adapter_is_pulled_checked_and_unpacked(hone: Hone, dataset: Path, tmp_path: Path):
    create = ["jobs", "create", "--file", str(dataset), "--model", "tiny"]
    job_id = hone.invoke(*create).stdout.strip()
    finish(hone, adapter({"adapter_config.json": b"{}"}))
    model = hone.json("jobs", "show", job_id)["fine_tuned_model"]
    for name, out in ((job_id, tmp_path / "one" / "adapter"), (model, tmp_path / "two")):
        result = hone.invoke("adapters", "pull", name, "--out", str(out))
        assert result.exit_code == Exit.GOOD, result.output
        assert (out / "adapter_config.json").read_bytes() == b"{}"
    assert hone.invoke("adapters", "pull", model, "--out", str(tmp_path / "two")).exit_code == Exit.REFUSED
    assert hone.invoke("adapters", "pull", "tiny", "--out", str(tmp_path / "three")).exit_code == Exit.REFUSED
    waiting = hone.invoke(*create).stdout.strip()
    result = hone.invoke("adapters", "pull", waiting, "--out", str(tmp_path / "three"))
    assert result.exit_code == Exit.REFUSED
    assert "queued" in result.stderr
    finish(hone, b"no zip")
    assert hone.invoke("adapters", "pull", waiting, "--out", str(tmp_path / "three")).exit_code == Exit.REFUSED
    assert not (tmp_path / "three").exists()
