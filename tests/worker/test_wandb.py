"""Jobs that tell Weights & Biases, by the real package: into its own file, to a server, and to dead ones."""

import base64
import csv
import io
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import psutil
import pytest

from core.settings import Settings
from core.specs import DataSpec, HoneSpec, TrainingSpec, WandbSpec
from core.storage import Storage
from models.database import Database
from models.status import JobStatus
from tests.waiting import wait_for
from tests.worker.test_preference import change, make_pairs
from tests.worker.test_train import Ended, make_job, run
from tests.worker.wandb_server import wandb_server
from tests.worker.world import World
from worker import wandb_log
from worker.protocol import Done, Event, ExitCode, LineWriter, TrainingInput, parse_line
from worker.supervise import Attempt, wandb_variables
from worker.wandb_log import Watcher, watching

KEY = "theoperators" + "x" * 28  # 40 characters: wandb looks
TINY = TrainingSpec(precision="float32", microbatch_size=4, save_steps=2, eval_steps=2, max_steps=4)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "dryrun")  # offline by its old name: of the new one transformers prints a line
    monkeypatch.setenv("WANDB_API_KEY", KEY)


def told(ended: Ended) -> list[Event]:
    return [line for line in ended.of(Event) if "Weights & Biases" in line.message or "W&B" in line.message]


def chunks(path: Path) -> Iterator[bytes]:
    """The records of LevelDB's log format: blocks of 32 KiB, headers that say length and kind; 7 bytes come first."""
    content, position, record = path.read_bytes(), 7, b""
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


# wandb's own messages, parsed where wandb may be imported: no process that imports `worker` may.
PARSE = """
import json, sys
from wandb.proto.wandb_internal_pb2 import Record
found = {"steps": {}}
for line in sys.stdin:
    record = Record.FromString(bytes.fromhex(line))
    if record.HasField("run"):
        run = record.run
        found["run"] = [run.run_id, run.project, run.entity, run.display_name, list(run.tags), run.host]
        found["git"] = run.git.remote_url
        found["config"] = {item.key: json.loads(item.value_json) for item in run.config.update}
    elif record.HasField("history"):
        row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        found["steps"][row.pop("_step")] = row
    elif record.HasField("exit"):
        found["exit"] = record.exit.exit_code
    elif record.HasField("output_raw") or record.HasField("stats"):
        raise SystemExit("console or machine")
print(json.dumps(found))
"""


def read_back(out: Path) -> dict:
    (path,) = out.glob("wandb/wandb/offline-run-*/run-*.wandb")
    lines = "\n".join(record.hex() for record in chunks(path))
    done = subprocess.run([sys.executable, "-c", PARSE], input=lines, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("method", ["supervised", "dpo"])
def test_each_step_is_told_as_the_csv_has_it_in_one_run_of_the_jobs_name(method, tiny_llama, tmp_path):
    asked = WandbSpec(project="code", name="mine", entity="team", tags=("a", "b"))
    make = make_job if method == "supervised" else make_pairs
    job = change(make(tmp_path, tiny_llama), wandb=asked)
    hone = HoneSpec(training=TINY, data=DataSpec(validation_fraction=0.1, system_prompt="Between us."))
    ended = run(change(job, hone=hone), tmp_path / "out")

    assert ended.code == ExitCode.DONE, ended.log[-3000:]
    assert isinstance(ended.lines[-1], Done)
    assert [(event.level, event.message.split(":")[0]) for event in told(ended)] == [
        ("info", "Weights & Biases run mine")
    ]
    found = read_back(ended.out)
    assert found["run"] == ["ftjob-test", "code", "team", "mine", ["a", "b"], "hone"]
    assert (found["exit"], found["git"]) == (0, "")
    assert found["config"]["seed"] == 42
    assert "Between us." not in json.dumps(found)
    with (ended.out / "artifacts" / "step_metrics.csv").open() as file:
        rows = {row["step"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["1", "2", "3", "4"]
    assert list(found["steps"]) == ["0", *rows]
    for step, row in rows.items():
        written = {name: float(value) for name, value in row.items() if value and name != "step"}
        assert {"train_loss", "learning_rate", "tokens_per_second"} <= set(written)
        assert {name: found["steps"][step][name] for name in written} == written
    assert "valid_loss" in found["steps"]["0"]
    assert_the_key_is_nowhere(tmp_path)
    assert KEY not in ended.log + "".join(line.model_dump_json() for line in ended.lines)


def assert_the_key_is_nowhere(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


def open_log(folder: Path, job: TrainingInput) -> tuple[io.StringIO, AbstractContextManager[Watcher]]:
    """What would be a job's standard output, and its watcher."""
    folder.mkdir()
    source = folder / "input.json"
    source.write_text(job.model_dump_json())
    stream = io.StringIO()
    return stream, watching(job, source, folder, LineWriter(stream))


def events(stream: io.StringIO) -> list[tuple[str, str]]:
    return [(line.level, line.message) for line in map(parse_line, stream.getvalue().splitlines())]


def test_an_attempt_that_goes_on_goes_on_in_the_same_run_and_no_step_is_doubled(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    job = change(make_job(tmp_path, tmp_path), wandb=WandbSpec(project="code", name="mine"))
    with wandb_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        first, log = open_log(tmp_path / "first", job)
        with pytest.raises(RuntimeError), log as watcher:
            for step in (1, 2, 3):
                watcher.tell(step, {"train_loss": 1 / step})
            watcher.tell(3, {"valid_loss": 0.5})
            raise RuntimeError
        second, log = open_log(tmp_path / "second", job)
        with log as watcher:
            for step in (3, 4, 5):  # the checkpoint was of step 2
                watcher.tell(step, {"train_loss": 1 / step})
            watcher.finish()
            done = len(second.getvalue())
    assert len(second.getvalue()) == done, "nothing is told after the end"
    assert [(row["_step"], row["train_loss"]) for row in server.rows] == [(n, 1 / n) for n in (1, 2, 3, 4, 5)]
    assert server.rows[2]["valid_loss"] == 0.5
    assert server.exits == [1, 0]
    assert all(KEY in base64.b64decode(key.removeprefix("Basic ")).decode() for key in server.keys)
    expected = [("info", f"Weights & Biases run mine: {server.url}/team/code/runs/ftjob-test")]
    assert (events(first), events(second)) == (expected, expected)
    assert_the_key_is_nowhere(tmp_path)


def test_a_server_that_hangs_holds_nothing_up_and_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr(wandb_log, "_PATIENCE", 3)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()  # takes connections, and never says a word
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
        job = change(make_job(tmp_path, tmp_path), wandb=WandbSpec(project="code"))
        stream, log = open_log(tmp_path / "out", job)
        with log as watcher:
            for step in range(5000):  # far more than a pipe holds
                watcher.tell(step, {"train_loss": 1.0, "learning_rate": 0.1})
    assert events(stream) == [("warn", "W&B has not taken all figures of this job; they are in its events")]
    wait_for(lambda: not holders(), seconds=20)


def test_without_the_integration_nothing_of_wandb_is_loaded(tiny_llama, tmp_path):
    source = tmp_path / "input.json"
    training = TINY.model_copy(update={"max_steps": 1})
    source.write_text(make_job(tmp_path, tiny_llama, training=training).model_dump_json())
    code = (
        "import sys\nfrom worker import train\ncode = train.main(sys.argv[1:])\n"
        "assert sys.modules['wandb'] is None and 'trl' in sys.modules and code == 0"
    )
    subprocess.run([sys.executable, "-c", code, source, tmp_path / "out"], check=True, stdout=subprocess.DEVNULL)
    assert not (tmp_path / "out" / "wandb").exists()


def holders() -> list[psutil.Process]:
    """Processes that have the key in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get("WANDB_API_KEY") == KEY:
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_a_server_that_does_not_answer_is_a_warning_and_the_job_is_done(
    sqlite_url: str, storage: Storage, tmp_path: Path, catalogue: Path, monkeypatch: pytest.MonkeyPatch, capfd
):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{listener.getsockname()[1]}"
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("HONE_WANDB_API_KEY", KEY)
    monkeypatch.setenv("HONE_WANDB_BASE_URL", closed)
    settings = Settings(home=tmp_path / "home", database_url=sqlite_url, catalogue=catalogue)
    assert wandb_variables(settings) == {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": closed}
    database = Database(sqlite_url)
    world = World(database, storage, settings)
    hone = HoneSpec(training=TINY, data=DataSpec(validation_fraction=0)).model_dump(mode="json")
    job_id = world.add_job(model="tiny", hone=hone, wandb={"project": "code"})

    Attempt(world.claim(), database, storage, settings).run()

    job = world.job(job_id)
    assert job.status == JobStatus.SUCCEEDED, world.messages(job_id)
    warnings = [event.message for event in world.events(job_id) if event.level == "warn"]
    # Whichever comes first: wandb gives up on its server, or the job is done.
    ends = ("connection refused", "W&B has not taken all figures of this job; they are in its events")
    assert [message for message in warnings if message.endswith(ends)], warnings
    wait_for(lambda: not holders(), seconds=20)
    database.dispose()
    assert_the_key_is_nowhere(tmp_path)
    assert KEY not in "".join(capfd.readouterr())


def test_without_a_key_a_child_gets_none():
    assert wandb_variables(Settings()) == {}
    assert wandb_variables(Settings(wandb_api_key="", wandb_base_url="http://w")) == {}
