"""A QLoRA run that dies anywhere and goes on has the losses of one that never stopped, bit by bit."""

import csv
import shutil
import signal
from pathlib import Path

import pytest

from core.specs import DataSpec, Hyperparameters, TrainingSpec
from tests.worker import dying
from tests.worker.dying import Instant, Run
from tests.worker.test_train import make_job
from worker import bundles
from worker.bundles import BundleError
from worker.checkpoints import read_manifest
from worker.protocol import ExitCode, Failed, TrainingInput

STEPS = 12
#: Twelve steps in three epochs of four: an epoch ends at a checkpoint (4, 8) and at a validation (8, 12).
TRAINING = TrainingSpec(precision="float32", microbatch_size=4, save_steps=2, eval_steps=3)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> TrainingInput:
    made = make_job(
        tmp_path_factory.mktemp("job"), tiny_llama, training=TRAINING, data=DataSpec(validation_fraction=0.2)
    )
    spec = made.spec.model_copy(update={"hyperparameters": Hyperparameters(n_epochs=3, batch_size=8)})
    return made.model_copy(update={"spec": spec})


@pytest.fixture(scope="module")
def whole(job: TrainingInput, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run that nothing happens to."""
    run = dying.train(job, tmp_path_factory.mktemp("whole") / "out")
    assert run.code == ExitCode.DONE
    assert sorted(run.losses) == list(range(1, STEPS + 1))
    assert sorted(run.valid_losses) == [0, 3, 6, 9, 12]
    return run


def go_on(job: TrainingInput, out: Path, before: list[Run], instant: Instant | None = None) -> Run:
    """Another attempt, from the newest checkpoint that was told of, as the worker does it."""
    told = {step: run.out / f"checkpoint-{step}" for run in before for step in run.saved}
    newest = told[max(told)] if told else None
    return dying.train(job.model_copy(update={"resume_from": newest}), out, instant)


def assert_same(run: Run, whole: Run) -> None:
    """Every figure that was told is that of the whole run, to the last bit."""
    assert run.losses == {step: whole.losses[step] for step in run.losses}
    assert run.valid_losses == {step: whole.valid_losses[step] for step in run.valid_losses}


def curve(run: Run) -> list[dict[str, str]]:
    with (run.out / "artifacts" / "step_metrics.csv").open() as file:
        return [
            {name: value for name, value in row.items() if name != "tokens_per_second"} for row in csv.DictReader(file)
        ]


def test_killed_after_every_step_it_ends_with_the_curve_of_a_whole_run(job: TrainingInput, whole: Run, tmp_path: Path):
    runs: list[Run] = []
    for step in range(1, STEPS + 1):
        runs.append(go_on(job, tmp_path / f"killed-{step}", runs, Instant("step", step)))
        assert runs[-1].code == -signal.SIGKILL
    runs.append(go_on(job, tmp_path / "last", runs))
    assert runs[-1].code == ExitCode.DONE
    for run in runs:
        assert_same(run, whole)
    assert set().union(*(run.losses for run in runs)) == set(whole.losses)
    assert curve(runs[-1]) == curve(whole)


@pytest.mark.parametrize(
    "instant",
    [
        Instant("evaluation", 0),
        Instant("evaluation", 6),
        Instant("evaluation", 12),
        Instant("save", 2),
        Instant("save", 8),
        Instant("seal", 8),
        Instant("seal", 12),
        Instant("artifacts", 12),
    ],
    ids=lambda instant: f"{instant.where}-{instant.step}",
)
def test_killed_while_it_evaluates_or_saves_it_ends_with_that_curve_too(
    instant: Instant, job: TrainingInput, whole: Run, tmp_path: Path
):
    killed = go_on(job, tmp_path / "killed", [], instant)
    assert killed.code == -signal.SIGKILL
    if instant.where in ("save", "seal"):
        torn = killed.out / f"checkpoint-{instant.step}"
        assert (torn / "optimizer.pt").exists()
        assert read_manifest(torn) is None
        assert instant.step not in killed.saved
    last = go_on(job, tmp_path / "last", [killed])
    assert last.code == ExitCode.DONE
    assert_same(killed, whole)
    assert_same(last, whole)
    assert curve(last) == curve(whole)


@pytest.mark.parametrize(
    ("instant", "stopped_at"),
    [
        (Instant("loading", 0, signal.SIGTERM), 1),
        (Instant("evaluation", 0, signal.SIGTERM), 1),
        (Instant("step", 5, signal.SIGTERM), 5),
        (Instant("evaluation", 6, signal.SIGTERM), 7),
        (Instant("save", 8, signal.SIGTERM), 9),
        (Instant("seal", 8, signal.SIGTERM), 9),
    ],
    ids=lambda value: f"{value.where}-{value.step}" if isinstance(value, Instant) else "",
)
def test_told_to_stop_in_any_phase_it_goes_on_from_where_it_was(
    instant: Instant, stopped_at: int, job: TrainingInput, whole: Run, tmp_path: Path
):
    stopped = go_on(job, tmp_path / "stopped", [], instant)
    assert stopped.code == ExitCode.STOPPED
    assert stopped.saved[-1] == stopped_at
    last = go_on(job, tmp_path / "last", [stopped])
    assert last.code == ExitCode.DONE
    assert_same(stopped, whole)
    assert_same(last, whole)
    assert sorted({**stopped.losses, **last.losses}) == sorted(whole.losses)
    assert not set(stopped.losses) & set(last.losses), "a step was done twice"


def test_a_full_disk_fails_the_run_by_name_and_leaves_the_checkpoints_that_were_there(
    job: TrainingInput, whole: Run, tmp_path: Path
):
    run = go_on(job, tmp_path / "full", [], Instant("disk full", 3))
    assert run.code == ExitCode.FAILED
    assert isinstance(run.lines[-1], Failed)
    assert run.lines[-1].code == "disk_full"
    assert "The worker's disk is full" in run.lines[-1].message
    assert run.saved == [2]
    assert read_manifest(run.out / "checkpoint-4") is None
    bundles.verify(run.out / "checkpoint-2")
    assert_same(go_on(job, tmp_path / "last", [run]), whole)


def test_of_a_hundred_saves_that_are_killed_none_leaves_half_a_checkpoint_that_counts(
    job: TrainingInput, tmp_path: Path
):
    run = dying.train(job, tmp_path / "out", Instant("step", 3), saves_killed=100)
    assert run.saved == [2]
    names = set(bundles.verify(run.out / "checkpoint-2"))
    assert {"adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= names
    whole, torn = 0, 0
    for number in range(100):
        folder = run.out / f"try-{number}" / "checkpoint-2"
        try:
            assert set(bundles.verify(folder)) == names
            whole += 1
        except BundleError:
            assert read_manifest(folder) is None
            torn += folder.exists()
        shutil.rmtree(folder, ignore_errors=True)
    assert torn >= 20, (whole, torn)
