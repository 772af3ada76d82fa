"""The command `hone`: keys, migrate, doctor, and the address and key that `hone up` tells."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from openai import OpenAI
from typer.testing import CliRunner

import migrations
from cli import doctor, keys
from cli.embedded import DemoError, EmbeddedHone
from cli.main import app
from core.settings import Settings, get_settings
from models import accounts
from models.database import Database


@pytest.fixture
def hone(monkeypatch, tmp_path, database_url):
    """Runs the command on an empty database of each engine."""
    monkeypatch.setenv("HONE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HONE_DATABASE_URL", database_url)
    get_settings.cache_clear()
    yield lambda *arguments: CliRunner().invoke(app, list(arguments))
    get_settings.cache_clear()


def authenticated(url: str, key: str) -> str:
    database = Database(url)
    try:
        with database.read() as session:
            return accounts.authenticate(session, key)
    finally:
        database.dispose()


def test_a_key_is_made_listed_without_itself_and_revoked(hone, database_url):
    key = hone("keys", "create", "laptop").output.strip()
    assert authenticated(database_url, key)
    listed = hone("keys", "list").output
    assert key not in listed
    assert key[-4:] in listed
    key_id = next(word for word in listed.split() if word.startswith("key_"))
    assert hone("keys", "revoke", key_id).exit_code == 0
    with pytest.raises(accounts.AuthenticationError):
        authenticated(database_url, key)


def test_keys_of_one_project_name_open_the_same_project(hone, database_url):
    first, second = (hone("keys", "create", "--project", "team").output.strip() for _ in range(2))
    other = hone("keys", "create", "--project", "another").output.strip()
    assert authenticated(database_url, first) == authenticated(database_url, second)
    assert authenticated(database_url, first) != authenticated(database_url, other)


def test_an_unknown_key_id_is_told_and_fails(hone):
    result = hone("keys", "revoke", "key_nowhere")
    assert result.exit_code == 1
    assert "no key key_nowhere" in result.output


def test_keys_without_tables_say_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("HONE_HOME", str(tmp_path / "home"))
    get_settings.cache_clear()
    result = CliRunner().invoke(app, ["keys", "create"])
    get_settings.cache_clear()
    assert result.exit_code == 1
    assert "hone migrate" in result.output


def test_migrate_makes_the_tables_and_stores_the_first_key_once(monkeypatch, tmp_path):
    url = f"sqlite:///{tmp_path / 'new.db'}"
    monkeypatch.setenv("HONE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HONE_DATABASE_URL", url)
    for key in ("hone-first", "hone-second"):
        monkeypatch.setenv("HONE_API_KEY", key)
        assert CliRunner().invoke(app, ["migrate"]).exit_code == 0
    assert authenticated(url, "hone-first")
    with pytest.raises(accounts.AuthenticationError):
        authenticated(url, "hone-second")


def test_a_setting_that_cannot_be_used_is_named(monkeypatch):
    monkeypatch.setenv("HONE_PORT", "many")
    result = CliRunner().invoke(app, ["migrate"])
    assert result.exit_code == 1
    assert "HONE_PORT" in result.output


def test_doctor_is_content_with_a_database_of_the_present_schema(hone):
    assert "hone keys create" in hone("doctor").output.replace("\n", " ")
    hone("keys", "create")
    result = hone("doctor")
    assert "wrong" not in result.output
    assert result.exit_code == 0


def test_doctor_finds_what_is_wrong_and_fails(monkeypatch, tmp_path, sqlite_url):
    migrations.downgrade(sqlite_url)
    (tmp_path / "catalogue.toml").write_text('[gone]\nsource = "folder"\npath = "/nowhere"\n')
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HONE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HONE_DATABASE_URL", sqlite_url)
    monkeypatch.setenv("HONE_CATALOGUE", str(tmp_path / "catalogue.toml"))
    monkeypatch.setenv("HONE_REDIS_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("HONE_STORAGE_URL", (tmp_path / "file" / "below").as_uri())
    assert CliRunner().invoke(app, ["doctor"]).exit_code == 1
    wrong = {check.name: check for check in doctor.examine(Settings()) if not check.good}
    assert wrong.keys() == {"database", "keys", "broker", "storage", "catalogue", "models"}
    assert all(check.cure for check in wrong.values())
    assert not (tmp_path / "home").exists(), "looking changes nothing"


def test_the_first_key_is_kept_for_this_user_alone_and_shown_while_it_works(tmp_path, database, database_url):
    settings = Settings(home=tmp_path, database_url=database_url)
    with database.write() as session:
        key = accounts.ensure_first_key(session, None)
    assert keys.local_key(settings, None) is None
    assert keys.local_key(settings, key) == key
    assert stat.S_IMODE((tmp_path / "api-key").stat().st_mode) == 0o600
    assert keys.local_key(settings, None) == key
    with database.write() as session:
        (row,) = session.query(accounts.ApiKey).all()
        accounts.revoke_key(session, row.id)
    assert keys.local_key(settings, None) is None


# --- Embedded ---------------------------------------------------------------------------------------------------------


def descendants() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def gone(processes: list[psutil.Process], seconds: float = 10) -> bool:
    return not psutil.wait_procs(processes, timeout=seconds)[1]


def test_an_embedded_hone_answers_the_official_client_and_leaves_nothing_behind():
    before = set(descendants())
    with EmbeddedHone() as embedded:
        models = OpenAI(base_url=embedded.base_url, api_key=embedded.api_key).models.list()
        assert "smollm2-135m-instruct" in [model.id for model in models.data]
        assert stat.S_IMODE((embedded.home / "ready.json").stat().st_mode) == 0o600
        assert "export OPENAI_BASE_URL=" in (embedded.logs / "up.log").read_text()
        started = [process for process in descendants() if process not in before]
        assert len(started) >= 3
    assert gone(started)
    assert not embedded.home.exists()


def test_when_a_step_fails_the_logs_are_kept(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(DemoError, match="by the test"), EmbeddedHone() as embedded:
        raise DemoError("failed by the test")
    assert (embedded.logs / "api.log").exists()


@pytest.mark.parametrize(("number", "phase"), [(signal.SIGINT, "Job started"), (signal.SIGTERM, "Hone is at")])
def test_a_demo_that_is_stopped_leaves_no_process_and_no_folder(tmp_path, number, phase):
    # Where the suite runs in the background SIGINT may be ignored, and a child would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    demo = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "demo", "--out", str(tmp_path / "out")],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert demo.stdout is not None
    while line := demo.stdout.readline():
        if phase in line:
            break
    assert line, f"the demo ended before '{phase}'"
    started = psutil.Process(demo.pid).children(recursive=True)
    assert len(started) >= 4
    demo.send_signal(number)
    demo.communicate(timeout=60)
    assert demo.returncode == 130
    assert gone(started)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("hone-")] == []


def test_a_demo_that_is_killed_takes_everything_along(tmp_path):
    demo = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "demo", "--out", str(tmp_path / "out")],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert demo.stdout is not None
    assert "Hone is at" in demo.stdout.readline()
    started = psutil.Process(demo.pid).children(recursive=True)
    demo.kill()
    demo.wait()
    assert gone(started)


def test_a_hone_that_cannot_start_says_why(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("cli.embedded.sys.executable", "/bin/false")
    with pytest.raises(DemoError, match="exit code"), EmbeddedHone():
        pytest.fail("it started")


def test_the_ready_file_is_whole_json(tmp_path):
    from cli.main import _write_ready_file

    path = tmp_path / "ready.json"
    _write_ready_file(path, {"base_url": "http://127.0.0.1:1/v1", "api_key": "hone-x", "pid": 1})
    assert json.loads(path.read_text())["api_key"] == "hone-x"
    assert [entry.name for entry in tmp_path.iterdir()] == ["ready.json"]
    assert time.time() - Path(path).stat().st_mtime < 60
