"""The watch itself: it sees what a lenient client would let pass, and what a suite forgot."""

import json
from typing import Any

import pytest

from tests.conformance.service import Service
from tests.conformance.speaking import Speaker, methods_of

FILE = {"id": "file-1", "object": "file", "bytes": 1, "created_at": 1, "filename": "f", "purpose": "fine-tune"}
METRICS = {"step": 1.0, "train_loss": 0.5}
CHECKPOINT = {
    "id": "ftckpt-1",
    "object": "fine_tuning.job.checkpoint",
    "created_at": 1,
    "fine_tuned_model_checkpoint": "m",
    "fine_tuning_job_id": "ftjob-1",
    "step_number": 1,
}


@pytest.fixture
def speaker(service: Service) -> Speaker:
    return Speaker(service.base_url, service.key("watched"), is_async=False)


@pytest.mark.parametrize(
    ("method", "body", "problem"),
    [
        ("files.retrieve", {**FILE, "status": "processed"}, None),
        ("files.retrieve", {**FILE, "status": "processed", "hone": {"any": 1}}, None),
        ("files.retrieve", FILE, "status: Field required"),
        ("files.retrieve", {**FILE, "status": "done"}, "status: Input should be"),
        ("files.retrieve", {**FILE, "status": "processed", "bytes": "1"}, "bytes: Input should be a valid integer"),
        ("files.retrieve", {**FILE, "status": "processed", "sha": "0"}, "unknown field sha"),
        ("fine_tuning.jobs.checkpoints.list", {"data": [{**CHECKPOINT, "metrics": METRICS}], "has_more": False}, None),
        (
            "fine_tuning.jobs.checkpoints.list",
            {"data": [{**CHECKPOINT, "metrics": {**METRICS, "loss": 1}}], "has_more": False},
            "unknown field data[0].metrics.loss",
        ),
        ("fine_tuning.jobs.checkpoints.list", {"data": [], "has_more": False, "first_id": None}, None),
        ("fine_tuning.jobs.checkpoints.list", {"data": [], "has_more": False, "total": 0}, "unknown field total"),
    ],
)
def test_an_answer_that_is_only_nearly_the_clients_type_is_a_problem(
    speaker: Speaker, method: str, body: dict[str, Any], problem: str | None
):
    kinds = {
        "files.retrieve": speaker.client.files.create(file=("f", b"x"), purpose="user_data"),
        "fine_tuning.jobs.checkpoints.list": _page(speaker),
    }
    speaker.heard.problems.clear()
    speaker.check(method, kinds[method], json.dumps(body))
    assert len(speaker.heard.problems) == (problem is not None)
    assert all(problem in line and line.startswith(f"{method}: ") for line in speaker.heard.problems if problem)


def _page(speaker: Speaker) -> Any:
    from openai.pagination import SyncCursorPage
    from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint

    return SyncCursorPage[FineTuningJobCheckpoint].construct(data=[])


def test_what_was_not_called_is_told_with_each_of_its_places(speaker: Speaker):
    unused = speaker.unused()
    assert {line.partition(":")[0] for line in unused} == set(methods_of(speaker.client))
    assert "models.list: never called" in unused
    assert "files.create: purpose=vision" in unused
    assert "fine_tuning.jobs.create: method.dpo.hyperparameters.beta" in unused
    assert "evals.create: testing_criteria[](string_check).operation=ilike" in unused


def test_a_refused_place_covers_what_is_below_it_and_nothing_else(speaker: Speaker):
    speaker.heard.refused["fine_tuning.jobs.create"]["method.dpo"] = "not here"
    left = [line for line in speaker.unused() if line.startswith("fine_tuning.jobs.create: method")]
    assert not any("method.dpo" in line for line in left)
    assert "fine_tuning.jobs.create: method.type=dpo" in left
    assert "fine_tuning.jobs.create: method.supervised.hyperparameters.n_epochs=auto" not in left
    assert "fine_tuning.jobs.create: method.supervised.hyperparameters.n_epochs" in left
