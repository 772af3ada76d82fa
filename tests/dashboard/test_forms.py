"""Forms: from the specs to the page, and from what was typed to a request."""

import json
import re

import pytest
from fastapi.exceptions import RequestValidationError
from starlette.testclient import TestClient

from api.dashboard.job_form import body_of, read_body, sections, values_of
from core.errors import InvalidRequestError
from core.specs import DpoSpec, FineTuneSpec, HoneSpec, Hyperparameters
from tests.api.driving import submit, upload


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """SQLite alone: what these tests look at is the same on PostgreSQL."""
    return sqlite_url


def test_the_form_offers_every_option_of_a_job():
    offered = {entry.name for section in sections({}) for entry in section.inputs}
    expected = {f"hyperparameters.{name}" for name in Hyperparameters.model_fields}
    expected |= {f"dpo.{name}" for name in DpoSpec.model_fields}
    for group, field in HoneSpec.model_fields.items():
        expected |= {f"hone.{group}.{name}" for name in field.annotation.model_fields}  # type: ignore[union-attr]
    assert offered == expected


def test_run_again_asks_for_the_same():
    spec = FineTuneSpec.model_validate(
        {
            "model": "tiny",
            "training_file": "file-1",
            "seed": 7,
            "suffix": "x",
            "hyperparameters": {"n_epochs": 2, "learning_rate_multiplier": 0.5},
            "hone": {
                "lora": {"r": 8, "target_modules": ["q_proj", "v_proj"], "dropout": 0.1},
                "quantization": {"type": "none", "double_quantization": False},
                "training": {"learning_rate": 1e-5, "max_steps": 10, "gradient_checkpointing": True},
                "data": {"system_prompt": "true", "max_seq_length": 64},
            },
        }
    )
    asked = read_body(body_of(values_of(spec)))
    assert asked.hone == spec.hone
    assert asked.chosen_hyperparameters() == spec.hyperparameters
    assert (asked.model, asked.training_file, asked.seed, asked.suffix) == ("tiny", "file-1", 7, "x")


def test_preferences_are_run_again_as_such():
    spec = FineTuneSpec(model="tiny", training_file="file-1", dpo=DpoSpec(beta=0.25))
    asked = read_body(body_of(values_of(spec)))
    assert asked.spec().dpo == spec.dpo
    # What belongs to the other method is left out.
    assert "method" not in body_of({"model": "tiny", "dpo.beta": "0.25", "method": "supervised"})


def test_an_empty_form_asks_for_defaults():
    body = body_of({"model": "tiny", "training_file": "file-1", "hone.lora.r": " ", "suffix": "", "seed": ""})
    assert body == {"model": "tiny", "training_file": "file-1"}


@pytest.mark.parametrize("text", ["[" * 5000, "NaN", "1e999", '{"a": 1}', "half \ud800", "nul \0", "9" * 40])
def test_nonsense_in_a_form_is_refused(text: str):
    values = {"model": "tiny", "training_file": "file-1", "hone.lora.r": text, "hone.data.system_prompt": text}
    with pytest.raises((RequestValidationError, InvalidRequestError)):
        read_body(body_of(values))


def test_a_form_makes_a_job_and_a_refusal_keeps_what_was_typed(browser: TestClient, http: TestClient):
    file_id = upload(http)
    form = {"model": "tiny", "training_file": file_id, "suffix": "typed", "hone.lora.r": "4000"}
    answer = browser.post("/jobs", data=form)
    assert answer.status_code == 400
    assert 'value="typed"' in answer.text
    assert re.search(r'name="hone\.lora\.r" value="4000"[^>]*aria-invalid="true"', answer.text)
    answer = browser.post("/jobs", data={**form, "hone.lora.r": "4"})
    assert answer.status_code == 303
    job = http.get(f"/v1/fine_tuning/jobs/{answer.headers['location'].removeprefix('/jobs/')}").json()
    assert job["hone"]["lora"]["r"] == 4
    assert job["training_file"] == file_id


def test_what_can_be_asked_of_a_job(browser: TestClient, http: TestClient):
    job_id = submit(http)["id"]
    for action, status in (("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled")):
        answer = browser.post(f"/jobs/{job_id}/{action}")
        assert (answer.status_code, answer.headers["location"]) == (303, f"/jobs/{job_id}")
        assert http.get(f"/v1/fine_tuning/jobs/{job_id}").json()["status"] == status
    answer = browser.post(f"/jobs/{job_id}/cancel")
    assert answer.status_code == 400
    assert "already been cancelled" in answer.text


def test_files_come_and_go(browser: TestClient, http: TestClient):
    line = json.dumps({"prompt": "p", "completion": "c"}).encode() + b"\n"
    answer = browser.post("/files", data={"purpose": "fine-tune"}, files={"file": ("a.jsonl", line)})
    assert answer.status_code == 303
    assert browser.get(f"{answer.headers['location']}/content").content == line
    broken = b"\n".join([line.strip(), b"{", b"[]", b'{"prompt": "p", "completion": 1}'])
    refused = browser.post("/files", data={"purpose": "fine-tune"}, files={"file": ("b.jsonl", broken)})
    assert refused.status_code == 400
    rows = re.findall(r'<tr><td class="num">(\d+)</td>', refused.text)
    assert rows == ["2", "3", "4"]
    assert browser.post(f"{answer.headers['location']}/delete").headers["location"] == "/files"
    assert http.get("/v1/files").json()["data"] == []


def test_a_file_over_the_limit_is_refused_before_it_is_read(browser: TestClient):
    answer = browser.post("/files", data={"purpose": "fine-tune"}, files={"file": ("a.jsonl", b"x" * 300_000)})
    assert answer.status_code == 413
