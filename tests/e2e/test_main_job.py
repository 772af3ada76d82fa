"""The main job from end to end: `hone up`, and OpenAI's client alone, as a user drives them."""

import csv
import hashlib
import io
import json
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai._legacy_response import HttpxBinaryResponseContent
from openai.types.evals import RunRetrieveResponse
from openai.types.fine_tuning import FineTuningJob

from tests.e2e.service import (
    ENDED,
    POLL_SECONDS,
    Service,
    as_lines,
    log_of,
    served,
    tiny_options,
    train_lines,
    write_catalogue,
)

#: 42 of 48 samples in batches of 4, twice.
TOTAL_STEPS = 22
REFERENCE = "def add(first):\n    total = first + {0}\n    return total"
ITEMS = [{"item": {"question": f"Add {n}.", "answer": REFERENCE.format(n)}} for n in range(3)]
CRITERION: Any = {
    "type": "code_bleu",
    "name": "CodeBLEU",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "lang": "python",
    "pass_threshold": 0.9,
}
PARTS = {"ngram", "weighted_ngram", "syntax", "dataflow"}


@dataclass
class Tuned:
    """A job that has succeeded, and what was seen of it on the way."""

    job: FineTuningJob
    finishes: list[tuple[float, int]] = field(default_factory=list)
    statuses: list[str] = field(default_factory=list)

    @property
    def hone(self) -> dict[str, Any]:
        return self.job.model_extra["hone"]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("main-job")
    with served(folder / "home", write_catalogue(folder, tiny_llama)) as running:
        yield running
        running.stop()


@pytest.fixture(scope="module")
def client(service: Service) -> OpenAI:
    return service.client()


@pytest.fixture(scope="module")
def tuned(service: Service, client: OpenAI) -> Tuned:
    """One fine-tune, followed to its end."""
    train = client.files.create(file=("train.jsonl", train_lines(48)), purpose="fine-tune")
    assert client.files.wait_for_processing(train.id, poll_interval=0.1).status == "processed"
    job = client.fine_tuning.jobs.create(
        model="tiny",
        training_file=train.id,
        suffix="docs",
        seed=7,
        metadata={"team": "docs"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
        extra_body={
            "hone": tiny_options(save_steps=8, eval_steps=8)["hone"] | {"data": {"validation_fraction": 0.125}}
        },
    )
    assert job.status in ("validating_files", "queued")
    assert job.hyperparameters.batch_size == "auto"
    followed = Tuned(job)
    deadline = time.monotonic() + 90
    while followed.job.status not in ENDED and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        followed.job = client.fine_tuning.jobs.retrieve(job.id)
        followed.statuses.append(followed.job.status)
        if followed.job.estimated_finish is not None:
            followed.finishes.append((time.time(), followed.job.estimated_finish))
    assert followed.job.status == "succeeded", (followed.job.error, log_of(service, "worker"))
    return followed


@pytest.fixture(scope="module")
def adapter(client: OpenAI, tuned: Tuned, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The second result file, unpacked."""
    folder = tmp_path_factory.mktemp("adapter")
    content = client.files.content(tuned.job.result_files[1]).read()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def run(service: Service, client: OpenAI, tuned: Tuned) -> RunRetrieveResponse:
    """One evaluation of the fine-tune and its base, followed to its end."""
    items = client.files.create(file=("items.jsonl", as_lines(ITEMS)), purpose="evals")
    client.files.wait_for_processing(items.id, poll_interval=0.1)
    made = client.evals.create(
        name="Sums",
        data_source_config={"type": "custom", "item_schema": {"type": "object"}, "include_sample_schema": True},
        testing_criteria=[CRITERION],
    )
    started = client.evals.runs.create(
        made.id,
        name="Base and tuned",
        data_source={
            "type": "completions",
            "model": tuned.job.fine_tuned_model,
            "source": {"type": "file_id", "id": items.id},
            "input_messages": {"type": "template", "template": [{"role": "user", "content": "{{item.question}}"}]},
            "sampling_params": {"max_completion_tokens": 24, "temperature": 0},
        },
    )
    deadline = time.monotonic() + 90
    while (present := client.evals.runs.retrieve(started.id, eval_id=made.id)).status in ("queued", "in_progress"):
        assert time.monotonic() < deadline
        time.sleep(POLL_SECONDS)
    assert present.status == "completed", (present.error, log_of(service, "worker"))
    return present


def steps_of(client: OpenAI, job_id: str) -> list[dict[str, Any]]:
    page: Any = client.get(f"/fine_tuning/jobs/{job_id}/metrics", cast_to=object)
    assert not page["has_more"]
    return list(page["data"])


def test_the_ready_file_is_for_its_owner_alone(service: Service) -> None:
    ready = service.home / "ready.json"
    assert ready.stat().st_mode & 0o777 == 0o600
    told = json.loads(ready.read_text())
    assert told == {"base_url": service.base_url, "api_key": service.key, "pid": service.process.pid}
    assert told["base_url"].endswith("/v1")


# --- The fine-tune ----------------------------------------------------------------------------------------------------


def test_a_job_comes_back_with_every_auto_resolved_and_its_reason(tuned: Tuned) -> None:
    asked, hone = tuned.job.method.supervised.hyperparameters, tuned.hone
    assert (asked.batch_size, asked.n_epochs, asked.learning_rate_multiplier) == (4, 2, 1)
    assert tuned.job.hyperparameters.batch_size == 4
    assert "auto" not in {value for part in ("training", "data") for value in hone[part].values() if value is not None}
    assert 0 < hone["training"]["learning_rate"] < 0.01
    assert hone["training"]["precision"] == "float32"
    assert {"hyperparameters.batch_size", "training.learning_rate", "data.max_seq_length"} <= set(hone["reasons"])
    assert not {"hyperparameters.n_epochs", "training.precision", "training.save_steps"} & set(hone["reasons"]), "given"
    assert all(hone["reasons"].values())


def test_a_job_tells_how_far_it_is_and_when_it_will_end(tuned: Tuned) -> None:
    assert list(dict.fromkeys(tuned.statuses))[-2:] == ["running", "succeeded"]
    assert tuned.finishes, "no estimate while it ran"
    for seen_at, finish in tuned.finishes:
        assert seen_at - 5 < finish < seen_at + 120
    assert tuned.job.estimated_finish is None
    assert tuned.job.created_at <= tuned.job.finished_at <= time.time()
    assert tuned.hone["progress"] == {"step": TOTAL_STEPS, "total_steps": TOTAL_STEPS, "attempt": 1}


def test_what_was_asked_stands_in_the_job(client: OpenAI, tuned: Tuned) -> None:
    job = tuned.job
    assert (job.model, job.seed, job.metadata, job.error) == ("tiny", 7, {"team": "docs"}, None)
    assert job.fine_tuned_model.startswith("ft:tiny:")
    assert ":docs:" in job.fine_tuned_model
    assert tuned.hone["report"]["dataset"]["train_samples"] == 42
    assert job.trained_tokens == 2 * tuned.hone["report"]["dataset"]["tokens_per_epoch"] > 0
    assert [listed.id for listed in client.fine_tuning.jobs.list()] == [job.id]


def test_events_tell_the_whole_story(client: OpenAI, tuned: Tuned) -> None:
    events = list(client.fine_tuning.jobs.list_events(tuned.job.id, limit=7))[::-1]  # page by page
    messages = [event.message for event in events if event.type == "message"]
    story = [
        f"Created fine-tuning job: {tuned.job.id}",
        "Files validated, job queued",
        "Job started",
        "Loading base model tiny",
        "Checkpoint created at step 8",
        "Checkpoint created at step 16",
        f"Checkpoint created at step {TOTAL_STEPS}",
        "The job has successfully completed",
    ]
    assert [message for message in messages if message in story] == story
    metrics = [event.data for event in events if event.type == "metrics"]
    assert {data["step"] for data in metrics if "train_loss" in data} == set(range(1, TOTAL_STEPS + 1))
    assert all(event.level == "info" for event in events), "nothing to warn of"


def test_checkpoints_have_openais_figures(client: OpenAI, tuned: Tuned) -> None:
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(tuned.job.id))
    assert [checkpoint.step_number for checkpoint in checkpoints] == [TOTAL_STEPS, 16, 8]
    for checkpoint in checkpoints:
        assert checkpoint.fine_tuned_model_checkpoint.startswith(tuned.job.fine_tuned_model)
        assert checkpoint.metrics.train_loss > 0
        assert 0 <= checkpoint.metrics.train_mean_token_accuracy <= 1


def test_metrics_and_the_csv_hold_each_step_once(client: OpenAI, tuned: Tuned) -> None:
    steps = steps_of(client, tuned.job.id)
    assert [step["step"] for step in steps] == list(range(TOTAL_STEPS + 1))
    assert steps[0]["train_loss"] is None, "step 0 is the base's validation"
    assert {step["step"] for step in steps if step["valid_loss"] is not None} == {0, 8, 16, TOTAL_STEPS}
    assert steps[-1]["valid_loss"] < steps[0]["valid_loss"], "it learns"
    rest: Any = client.get(
        f"/fine_tuning/jobs/{tuned.job.id}/metrics", cast_to=object, options={"params": {"after_step": 20}}
    )
    assert rest["data"] == steps[21:]

    text = client.files.content(tuned.job.result_files[0]).text
    assert text.splitlines()[0].split(",")[:5] == [
        "step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy",
    ]  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [int(row["step"]) for row in rows] == list(range(1, TOTAL_STEPS + 1))
    assert [float(row["train_loss"]) for row in rows] == [step["train_loss"] for step in steps[1:]]


def test_result_files_are_files_of_the_project(client: OpenAI, tuned: Tuned) -> None:
    files = [client.files.retrieve(file_id) for file_id in tuned.job.result_files]
    assert [(file.filename, file.purpose) for file in files] == [
        ("step_metrics.csv", "fine-tune-results"),
        ("adapter.zip", "fine-tune-results"),
    ]
    for file in files:
        content = client.files.content(file.id).read()
        assert len(content) == file.bytes
        assert hashlib.sha256(content).hexdigest() == file.model_extra["hone"]["sha256"]


def test_the_adapters_manifest_agrees_with_every_file(adapter: Path, tuned: Tuned) -> None:
    manifest = json.loads((adapter / "manifest.json").read_text())
    hashes = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in adapter.iterdir()
        if path.name != "manifest.json"
    }
    assert manifest["files"] == hashes
    assert {
        *("adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "README.md"),
        *("step_metrics.csv", "loss.png", "lengths.png"),
    } <= set(hashes)
    assert (manifest["job_id"], manifest["fine_tuned_model"]) == (tuned.job.id, tuned.job.fine_tuned_model)
    assert (adapter / "loss.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_the_adapter_loads_onto_the_base_and_changes_what_it_says(adapter: Path, tiny_llama: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    tokens = AutoTokenizer.from_pretrained(adapter)("def add_3(x):\n    total = x + 3", return_tensors="pt").input_ids
    with torch.no_grad():
        before = base(tokens, labels=tokens)
        after = PeftModel.from_pretrained(base, adapter)(tokens, labels=tokens)
    assert not torch.allclose(before.logits, after.logits, atol=1e-3)
    assert after.loss < before.loss, "code like that which it was trained on"


def test_the_adapter_is_downloaded_in_ranges_and_can_be_checked(client: OpenAI, tuned: Tuned) -> None:
    path = f"/fine_tuning/jobs/{tuned.job.id}/adapter"
    whole = client.get(path, cast_to=HttpxBinaryResponseContent)
    sha256 = hashlib.sha256(whole.content).hexdigest()
    assert whole.response.status_code == 200
    assert whole.response.headers["x-content-sha256"] == sha256
    assert whole.response.headers["etag"] == f'"{sha256}"'
    assert whole.content == client.files.content(tuned.job.result_files[1]).content
    middle = len(whole.content) // 2
    rest = client.get(
        path,
        cast_to=HttpxBinaryResponseContent,
        options={"headers": {"Range": f"bytes={middle}-", "If-Range": whole.response.headers["etag"]}},
    )
    assert rest.response.status_code == 206
    assert rest.response.headers["content-range"] == f"bytes {middle}-{len(whole.content) - 1}/{len(whole.content)}"
    assert whole.content[:middle] + rest.content == whole.content


def test_the_fine_tune_is_a_model(client: OpenAI, tuned: Tuned) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", tuned.job.fine_tuned_model]
    model = client.models.retrieve(tuned.job.fine_tuned_model)
    assert model.model_extra["hone"] == {
        "base_model": "tiny",
        "job_id": tuned.job.id,
        "adapter_file": tuned.job.result_files[1],
    }


# --- The evaluation ---------------------------------------------------------------------------------------------------


def test_a_run_scores_the_fine_tune_beside_its_base(run: RunRetrieveResponse, tuned: Tuned) -> None:
    scores = run.model_extra["hone"]["scores"]
    assert (scores["model"], scores["base_model"], scores["samples"]) == (tuned.job.fine_tuned_model, "tiny", 3)
    (criterion,) = scores["criteria"]
    assert criterion["name"] == "CodeBLEU"
    for side in (criterion["model"], criterion["base"]):
        assert {"codebleu", *PARTS} <= set(side)
        assert 0 <= side["codebleu"] <= 1
        assert side["passed"] + side["failed"] == 3
    counts = run.result_counts
    assert (counts.total, counts.errored) == (3, 0)
    assert (counts.passed, counts.failed) == (criterion["model"]["passed"], criterion["model"]["failed"])
    assert run.per_testing_criteria_results[0].failed == counts.failed


def test_output_items_hold_both_answers_and_their_scores(client: OpenAI, run: RunRetrieveResponse) -> None:
    items = list(client.evals.runs.output_items.list(run.id, eval_id=run.eval_id, limit=2))
    assert sorted(item.datasource_item_id for item in items) == [0, 1, 2]
    for item in items:
        assert item.datasource_item == ITEMS[item.datasource_item_id]["item"]
        assert item.sample.input[0].content == item.datasource_item["question"]
        answer, base = item.sample.output[0].content, item.model_extra["hone"]["base"]["output_text"]
        assert isinstance(answer, str)
        assert isinstance(base, str)
        result = item.results[0]
        assert result.passed == (result.score >= 0.9)
        assert set(result.model_extra["parts"]) == PARTS
        assert set(result.model_extra["base"]["parts"]) == PARTS
        assert item.status == ("pass" if result.passed else "fail")
    model = run.model_extra["hone"]["scores"]["criteria"][0]["model"]
    mean = sum(item.results[0].score for item in items) / 3
    assert mean == pytest.approx(model["codebleu"])
    pairs = [(item.sample.output[0].content, item.model_extra["hone"]["base"]["output_text"]) for item in items]
    assert any(answer != base for answer, base in pairs), "the adapter changes answers"


def test_a_runs_result_files_are_downloaded(client: OpenAI, run: RunRetrieveResponse) -> None:
    hone = run.model_extra["hone"]
    contents = {
        client.files.retrieve(file_id).filename: client.files.content(file_id).read()
        for file_id in hone["result_files"]
    }
    assert list(contents) == ["scores.json", "codebleu.png", "items.jsonl"]
    assert json.loads(contents["scores.json"]) == hone["scores"]
    assert contents["codebleu.png"].startswith(b"\x89PNG\r\n")
    assert [json.loads(line)["item"] for line in contents["items.jsonl"].splitlines()] == [
        line["item"] for line in ITEMS
    ]


# --- Others -----------------------------------------------------------------------------------------------------------


def test_another_project_sees_nothing_of_it(
    service: Service, client: OpenAI, tuned: Tuned, run: RunRetrieveResponse
) -> None:
    other = service.client(service.hone("keys", "create", "other", "--project", "second"))
    assert [model.id for model in other.models.list()] == ["tiny"]
    for listed in (other.files.list(), other.fine_tuning.jobs.list(), other.evals.list()):
        assert list(listed) == []
    job = tuned.job
    for look in (
        lambda who: who.fine_tuning.jobs.retrieve(job.id),
        lambda who: who.fine_tuning.jobs.list_events(job.id),
        lambda who: who.fine_tuning.jobs.checkpoints.list(job.id),
        lambda who: who.get(f"/fine_tuning/jobs/{job.id}/adapter", cast_to=HttpxBinaryResponseContent),
        lambda who: who.get(f"/fine_tuning/jobs/{job.id}/metrics", cast_to=object),
        lambda who: who.files.retrieve(job.training_file),
        lambda who: who.files.content(job.result_files[1]),
        lambda who: who.models.retrieve(job.fine_tuned_model),
        lambda who: who.evals.retrieve(run.eval_id),
        lambda who: who.evals.runs.retrieve(run.id, eval_id=run.eval_id),
        lambda who: who.evals.runs.output_items.list(run.id, eval_id=run.eval_id),
    ):
        look(client)
        with pytest.raises(openai.NotFoundError):
            look(other)
    with pytest.raises(openai.BadRequestError, match="training_file"):
        other.fine_tuning.jobs.create(model="tiny", training_file=job.training_file)
    with pytest.raises(openai.AuthenticationError):
        service.client("hone-no-such-key").models.list()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"instruction": "Add", "output": "x = 1"\n', "line 3: is not JSON"),
        (b'{"instruction": "Add"}\n', "line 3"),
        (b'{"prompt": "Add", "completion": "x = 1"}\n', "line 3"),
    ],
)
def test_a_bad_line_is_named_at_the_upload(client: OpenAI, line: bytes, words: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.files.create(file=("train.jsonl", train_lines(2) + line + train_lines(1)), purpose="fine-tune")
    assert words in caught.value.message
    assert caught.value.param == "file"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "no-such-model"}, "no-such-model"),
        ({"extra_body": {"hone": {"lora": {"rank": 8}}}}, "hone.lora.rank"),
        ({"hyperparameters": {"n_epochs": 0}}, "n_epochs"),
    ],
)
def test_a_bad_request_names_its_field(client: OpenAI, tuned: Tuned, changes: dict[str, Any], words: str) -> None:
    body = {"model": "tiny", "training_file": tuned.job.training_file} | changes
    with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as caught:
        client.fine_tuning.jobs.create(**body)
    assert words in caught.value.message
