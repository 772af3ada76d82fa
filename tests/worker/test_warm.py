"""The warm process: job after job on one base, each as if it were the first, and no job after one that went wrong."""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from core.specs import DataSpec, LoraSpec, TrainingSpec
from tests.worker import dying
from tests.worker.test_train import make_job
from worker.checkpoints import sha256_of
from worker.host import IDLE, Host, Order, Turn, base_of, warm_command
from worker.protocol import Done, Event, ExitCode, Failed, Step, TrainingInput, parse_line
from worker.workspace import Workspace

TRAINING = TrainingSpec(precision="float32", save_steps=4, eval_steps=3, max_steps=4)


def make(folder: Path, model: Path, **changes) -> TrainingInput:
    folder.mkdir(parents=True, exist_ok=True)
    usual = {"training": TRAINING, "data": DataSpec(validation_fraction=0.1), "lora": LoraSpec()}
    return make_job(folder, model, **(usual | {"cache": folder.parent / "cache"} | changes))


@dataclass
class Result:
    code: int
    pid: int
    out: Path
    lines: list = field(default_factory=list)

    def of(self, kind):
        return [line for line in self.lines if isinstance(line, kind)]

    @property
    def losses(self):
        return [
            (line.step, name, value) for line in self.of(Step) for name, value in line.metrics.items() if "loss" in name
        ]

    @property
    def adapter(self) -> str:
        return sha256_of(self.out / "checkpoint-4" / "adapter_model.safetensors")


def begin(host: Host, job: TrainingInput, folder: Path) -> Turn:
    space = Workspace(folder)
    space.out.mkdir(parents=True)
    space.input.write_text(job.model_dump_json())
    return host.start(Order.of(space), base_of(space.input), os.environ | {"OMP_NUM_THREADS": "1"})


def finish(turn: Turn, folder: Path) -> Result:
    lines = []
    while (batch := turn.take()) is not None:
        lines += [parse_line(line.decode()) for line in batch]
    return Result(turn.wait(), turn.pid, folder / "out", lines)


def run(host: Host, job: TrainingInput, folder: Path) -> Result:
    return finish(begin(host, job, folder), folder)


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    made = Host(warm_command(), idle_seconds=3600)
    made.prepare(os.environ)
    yield made
    made.close()


@pytest.fixture(scope="module")
def two(host: Host, tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> list[tuple[TrainingInput, Result]]:
    """Two jobs of other ranks, layers and seeds, one after the other in the warm process."""
    folder = tmp_path_factory.mktemp("two")
    first = make(folder / "first", tiny_llama)
    second = make(
        folder / "second", tiny_llama, lora=LoraSpec(r=4, dropout=0.1, target_modules=("q_proj", "down_proj"))
    )
    second = second.model_copy(update={"spec": second.spec.model_copy(update={"seed": 7})})
    return [(job, run(host, job, folder / f"run-{n}")) for n, job in enumerate((first, second, first))]


def test_the_process_and_the_base_are_used_again(two):
    assert [result.code for _, result in two] == [ExitCode.DONE] * 3
    assert len({result.pid for _, result in two}) == 1
    assert all(isinstance(result.lines[-1], Done) for _, result in two)


@pytest.mark.parametrize("number", [0, 1])
def test_each_job_has_the_losses_and_the_adapter_of_a_process_of_its_own(number, two, tmp_path):
    job, warm = two[number]
    cold = dying.train(job, tmp_path / "cold" / "out")
    alone = Result(cold.code, 0, cold.out, cold.lines)
    assert warm.losses == alone.losses
    assert warm.adapter == alone.adapter


def test_a_job_leaves_nothing_to_the_next(two):
    assert two[2][1].losses == two[0][1].losses
    assert two[2][1].adapter == two[0][1].adapter


def test_the_base_is_loaded_once(two):
    loads = [[line.message for line in result.of(Event) if "ase model" in line.message] for _, result in two]
    assert loads == [["Loading base model tiny"], ["Base model tiny is loaded"], ["Base model tiny is loaded"]]


def test_a_jobs_report_tells_whether_the_base_was_loaded_and_what_that_took(two):
    runs = [result.of(Done)[0].report["run"] for _, result in two]
    assert [run["warm"] for run in runs] == [False, True, True]
    assert all(run["load_seconds"] < runs[0]["load_seconds"] for run in runs[1:])
    assert all(run["fetch_seconds"] + run["load_seconds"] <= run["seconds"] for run in runs)


def test_a_job_that_fails_takes_the_process_along_and_one_told_to_stop_as_well(two, host, tmp_path, tiny_llama):
    before = two[0][1].pid
    failed = run(host, make(tmp_path / "f", tiny_llama, data=DataSpec(max_seq_length=16)), tmp_path / "failed")
    assert (failed.code, failed.pid) == (ExitCode.FAILED, before)
    assert failed.of(Failed)[0].code == "no_trained_tokens"
    host.settle()
    assert host.pid is None
    assert not psutil.pid_exists(before)

    long = make(
        tmp_path / "l", tiny_llama, training=TRAINING.model_copy(update={"max_steps": 5000, "save_steps": 5000})
    )
    turn = begin(host, long, tmp_path / "long")
    assert turn.pid != before
    lines: list = []
    while not any(isinstance(line, Step) and "train_loss" in line.metrics for line in lines):
        lines += [parse_line(line.decode()) for line in turn.take() or []]
    turn.stop(20)
    stopped = finish(turn, tmp_path / "long")
    assert stopped.code == ExitCode.STOPPED
    host.settle()
    assert host.pid is None


# --- The worker's side, by a process that only speaks as the warm one does -------------------------------------------

ECHO = """
import sys, json
for text in sys.stdin:
    order = json.loads(text)
    print(json.dumps({"type": "event", "message": order["out"]}), flush=True)
    if "die" in order["out"]:
        sys.exit(5)
    print('{"type": "idle"}', flush=True)
"""


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def echo(clock: Clock) -> Iterator[Host]:
    import sys

    made = Host([sys.executable, "-c", ECHO], idle_seconds=60, clock=clock)
    yield made
    made.close()


def order(host: Host, folder: Path, name: str = "out", base: str = "a") -> tuple[int, int, list[bytes]]:
    turn = host.start(Order(input=folder, out=folder / name, stderr=folder / "log"), base, os.environ)
    lines = []
    while (batch := turn.take()) is not None:
        lines += batch
    return turn.pid, turn.wait(), lines


def test_the_line_that_ends_a_job_is_not_handed_on(echo: Host, tmp_path: Path):
    pid, code, lines = order(echo, tmp_path)
    assert (code, [json.loads(line)["message"] for line in lines]) == (0, [str(tmp_path / "out")])
    assert IDLE not in lines
    assert order(echo, tmp_path)[0] == pid


def test_a_process_that_was_begun_early_takes_the_first_job_whatever_its_base(echo: Host, tmp_path: Path):
    echo.prepare(os.environ)
    pid = echo.pid
    echo.prepare(os.environ)
    assert order(echo, tmp_path, base="b")[0] == pid


def test_a_process_that_waits_for_its_first_job_may_wait_long(echo: Host, clock: Clock):
    echo.prepare(os.environ)
    pid, clock.now = echo.pid, 3600
    echo.settle()
    assert echo.pid == pid


def test_a_process_that_ends_before_its_first_job_is_not_begun_again(echo: Host, tmp_path: Path):
    echo.prepare(os.environ)
    child = echo._child
    assert child is not None
    child.kill()
    child.wait()
    echo.settle()
    echo.prepare(os.environ)
    assert echo.pid is None
    assert order(echo, tmp_path)[1] == 0


def test_another_base_gets_another_process(echo: Host, tmp_path: Path):
    first = order(echo, tmp_path)[0]
    assert order(echo, tmp_path, base="b")[0] != first
    assert not psutil.pid_exists(first)


def test_a_process_that_was_idle_too_long_goes(echo: Host, clock: Clock, tmp_path: Path):
    pid = order(echo, tmp_path)[0]
    echo.settle()
    clock.now = 59
    echo.settle()
    assert echo.pid == pid
    clock.now = 60
    echo.settle()
    assert echo.pid is None
    assert not psutil.pid_exists(pid)


def test_a_crash_is_told_and_the_next_job_gets_a_fresh_process(echo: Host, tmp_path: Path):
    pid, code, lines = order(echo, tmp_path, "die")
    assert (code, len(lines)) == (5, 1)
    assert order(echo, tmp_path)[0] != pid


def test_a_kept_process_that_was_killed_is_not_relied_on(echo: Host, tmp_path: Path):
    pid = order(echo, tmp_path)[0]
    psutil.Process(pid).kill()
    deadline = time.monotonic() + 20
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    again, code, _ = order(echo, tmp_path)
    assert (again != pid, code) == (True, 0)


def test_what_is_asked_of_a_job_that_has_ended_does_not_reach_the_process(echo: Host, tmp_path: Path):
    turn = echo.start(Order(input=tmp_path, out=tmp_path / "out", stderr=tmp_path / "log"), "a", os.environ)
    while turn.take() is not None:
        pass
    turn.kill()
    turn.end_within(0)
    assert turn.wait() == 0
    assert psutil.pid_exists(turn.pid)


def test_jobs_share_a_base_when_model_quantization_and_precision_are_the_same(tmp_path: Path, tiny_llama: Path):
    def base(**changes) -> str:
        made = make(tmp_path, tiny_llama, **changes)
        (tmp_path / "input.json").write_text(made.model_dump_json())
        return base_of(tmp_path / "input.json")

    assert base() == base(lora=LoraSpec(r=2))
    assert base() != base(training=TRAINING.model_copy(update={"precision": "bfloat16"}))
