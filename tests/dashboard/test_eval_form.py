"""The form of a new evaluation: what it takes out of a job, a run and a file, and where it says what is wrong."""

import json
import re
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.dashboard import eval_items
from api.dashboard.eval_form import DEFAULTS, short_name
from core.storage import Storage
from models.database import Database
from tests.api.driving import CHAT, EVAL, ITEMS, claim, run_body, submit, train, upload


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """SQLite alone: what these tests look at is the same on PostgreSQL."""
    return sqlite_url


def lines(*records: dict[str, Any]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def start(browser: TestClient, http: TestClient, **fields: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Send the form: the run that comes of it, and the first of its items."""
    answer = browser.post("/evals", data={**DEFAULTS, "model": "tiny", **fields})
    assert answer.status_code == 303, re.findall(r'role="alert">([^<]*)', answer.text)
    run = http.get(f"/v1{answer.headers['location']}").json()
    content = http.get(f"/v1/files/{run['data_source']['source']['id']}/content").text
    return run, {"lines": content.splitlines(), **json.loads(content.splitlines()[0])}


def prompt_of(run: dict[str, Any]) -> list[tuple[str, str]]:
    return [(turn["role"], turn["content"]) for turn in run["data_source"]["input_messages"]["template"]]


def refused_at(browser: TestClient, **fields: str) -> tuple[str, str]:
    """Send the form: the field that it is refused at, and why."""
    answer = browser.post("/evals", data={**DEFAULTS, "model": "tiny", **fields})
    assert answer.status_code == 400
    wrong = r'id="f-(\w+)"[^>]*aria-invalid="true" autofocus aria-describedby="[^"]*\bproblem"'
    [field] = re.findall(wrong, answer.text)
    [why] = re.findall(r'id="problem">([^<]*)<', answer.text)
    return field, why.replace("&#39;", "'")


def test_an_evaluation_file_is_asked_as_it_is(browser: TestClient, http: TestClient):
    file_id = upload(http, ITEMS, "evals", "held-out.jsonl")
    run, item = start(browser, http, file=file_id, max_tokens="64", seed="7")
    assert run["data_source"]["source"]["id"] == file_id
    assert prompt_of(run) == [("user", "{{item.prompt}}")]
    assert run["data_source"]["sampling_params"] == {"max_completion_tokens": 64, "seed": 7}
    assert run["name"] == "tiny on held-out.jsonl"
    assert run["hone"]["compare_base"] is True
    [criterion] = http.get(f"/v1/evals/{run['eval_id']}").json()["testing_criteria"]
    assert (criterion["type"], criterion["lang"], criterion["pass_threshold"]) == ("code_bleu", "python", 0.5)
    assert criterion["reference"] == "{{item.completion}}"
    # The first of it, as a file of the run's own.
    run, item = start(browser, http, file=file_id, at_most="1", compare_base="")
    assert run["data_source"]["source"]["id"] != file_id
    assert len(item["lines"]) == 1
    assert run["hone"]["compare_base"] is False


def test_a_jobs_model_and_validation_file_are_filled_in(
    browser: TestClient, http: TestClient, database: Database, storage: Storage
):
    held_out = upload(http, CHAT, name="valid.jsonl")
    hone = {"data": {"system_prompt": "Be brief."}, "evaluation": {"codebleu_lang": "go"}}
    job = submit(http, suffix="mine", validation_file=held_out, hone=hone)
    train(database, storage)
    job = http.get(f"/v1/fine_tuning/jobs/{job['id']}").json()
    assert f'href="/evals/new?job={job["id"]}"' in browser.get(f"/jobs/{job['id']}").text
    text = browser.get(f"/evals/new?job={job['id']}").text
    chosen = re.findall(r'<option value="([^"]*)" selected', text)
    assert chosen == [job["fine_tuned_model"], held_out, "code_bleu", "go"]
    assert ">Be brief.</textarea>" in text
    run, item = start(browser, http, model=job["fine_tuned_model"], file=held_out, system="Be brief.")
    assert item["item"] == {"prompt": "hi", "completion": "hello"}
    assert prompt_of(run) == [("system", "Be brief."), ("user", "{{item.prompt}}")]
    assert run["model"] == job["fine_tuned_model"]
    names = [file["filename"] for file in http.get("/v1/files", params={"purpose": "evals"}).json()["data"]]
    assert names == ["items of valid.jsonl"]


def test_a_dataset_is_asked_in_the_turns_that_it_has(browser: TestClient, http: TestClient):
    turns = [("system", "s"), ("user", "u"), ("assistant", "a"), ("user", "v"), ("assistant", "b")]
    chat = {"messages": [{"role": role, "content": content} for role, content in turns]}
    run, item = start(browser, http, file=upload(http, lines(chat)), system="not this one")
    assert item["item"] == {"turn_1": "s", "turn_2": "u", "turn_3": "a", "turn_4": "v", "completion": "b"}
    assert prompt_of(run) == [(role, f"{{{{item.turn_{n}}}}}") for n, (role, _) in enumerate(turns[:-1], start=1)]
    instruction = {"instruction": "i", "input": "n", "output": "o"}
    run, item = start(browser, http, file=upload(http, lines(instruction)), prompt="Say {{ item.prompt }}")
    assert item["item"] == {"prompt": "i\n\nn", "completion": "o"}
    assert prompt_of(run) == [("user", "Say {{item.prompt}}")]
    mixed = lines({"messages": chat["messages"][-2:]}, chat)
    field, why = refused_at(browser, file=upload(http, mixed))
    assert field == "file"
    assert "Sample 2" in why
    assert "system, user, assistant, user" in why


@pytest.mark.parametrize(
    ("judge", "expected"),
    [
        ("text_similarity:rouge_l", {"type": "text_similarity", "evaluation_metric": "rouge_l", "pass_threshold": 0.5}),
        ("string_check:ilike", {"type": "string_check", "operation": "ilike"}),
    ],
)
def test_other_judges_are_there_too(browser: TestClient, http: TestClient, judge: str, expected: dict[str, Any]):
    run, _ = start(browser, http, file=upload(http, ITEMS, "evals"), judge=judge, reference="{{item.prompt}}")
    [criterion] = http.get(f"/v1/evals/{run['eval_id']}").json()["testing_criteria"]
    assert expected.items() <= criterion.items()
    assert criterion["reference"] == "{{item.prompt}}"


def test_the_same_evaluation_can_be_run_on_another_model(browser: TestClient, http: TestClient):
    eval_id = http.post("/v1/evals", json=EVAL).json()["id"]
    file_id = upload(http, ITEMS, "evals")
    body = run_body({"type": "file_id", "id": file_id})
    body["hone"] = {"compare_base": False}
    first = http.post(f"/v1/evals/{eval_id}/runs", json=body).json()
    assert f'href="/evals/new?from={first["id"]}"' in browser.get(f"/evals/{eval_id}/runs/{first['id']}").text
    text = browser.get(f"/evals/new?from={first['id']}").text
    assert re.findall(r'<option value="([^"]*)" selected', text)[:3] == ["tiny", file_id, eval_id]
    assert ">{{item.prompt}}</textarea>" in text
    assert 'name="max_tokens" value="64"' in text
    assert not re.search(r'name="compare_base"[^>]*checked', text)
    run, _ = start(browser, http, file=file_id, eval_id=eval_id, prompt="{{item.prompt}}", judge="nonsense")
    assert run["eval_id"] == eval_id
    # What the form can't hold is not offered: several turns, and no model at all.
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    body["data_source"]["input_messages"]["template"] = turns
    several = http.post(f"/v1/evals/{eval_id}/runs", json=body).json()["id"]
    assert "/evals/new?from=" not in browser.get(f"/evals/{eval_id}/runs/{several}").text
    assert browser.get(f"/evals/new?from={several}").status_code == 200


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"file": ""}, "file", "Choose the file"),
        ({"file": "file-none"}, "file", "No file 'file-none'"),
        ({"model": "gpt-5"}, "model", "gpt-5"),
        ({"at_most": "0"}, "at_most", "from 1 to 10,000"),
        ({"at_most": "²"}, "at_most", "from 1 to 10,000"),
        ({"at_most": "1e3"}, "at_most", "from 1 to 10,000"),
        ({"prompt": "{{item.other}}"}, "file", "Item 1 has no 'other'"),
        ({"prompt": "{{name}}"}, "prompt", "only {{item.<name>}}"),
        ({"system": "{{x}}", "prompt": "{{item.prompt}}"}, "system", "only {{item.<name>}}"),
        ({"system": "be brief", "prompt": "{{x}}"}, "prompt", "only {{item.<name>}}"),
        ({"reference": "{{x}}"}, "reference", "only {{item.<name>}}"),
        ({"judge": "python"}, "judge", "runs no code"),
        ({"judge": "text_similarity:cosine"}, "judge", "compares embeddings"),
        ({"judge": "string_check:near"}, "judge", "eq"),
        ({"lang": "cobol"}, "lang", "python"),
        ({"pass_threshold": "2"}, "pass_threshold", "less than or equal to 1"),
        ({"max_tokens": "many"}, "max_tokens", "integer"),
        ({"temperature": "9"}, "temperature", "less than or equal to 2"),
        ({"top_p": "0"}, "top_p", "greater than 0"),
        ({"seed": "-1"}, "seed", "greater than or equal to 0"),
        ({"name": "n" * 300}, "name", "256"),
    ],
)
def test_what_is_wrong_is_said_at_its_field(
    browser: TestClient, http: TestClient, fields: dict[str, str], field: str, words: str
):
    values = {"file": upload(http, ITEMS, "evals"), "name": "kept", **fields}
    found, why = refused_at(browser, **values)
    assert found == field
    assert words.replace("<", "&lt;").replace(">", "&gt;") in why
    # Nothing stays of it.
    assert http.get("/v1/evals").json()["data"] == []
    assert len(http.get("/v1/files").json()["data"]) == 1


def test_a_refused_run_leaves_no_items_behind(browser: TestClient, http: TestClient):
    http.post("/v1/evals", json=EVAL)
    file_id = upload(http, lines({"prompt": "p", "completion": "c"}))
    field, why = refused_at(browser, file=file_id, eval_id="eval_none")
    assert field == "eval_id"
    assert "No eval 'eval_none'" in why
    field, _ = refused_at(browser, file=file_id, prompt="{{item.other}}")
    assert field == "file"
    assert [file["id"] for file in http.get("/v1/files").json()["data"]] == [file_id]


def test_items_without_a_known_field_are_refused_with_what_there_is(browser: TestClient, http: TestClient):
    file_id = upload(http, lines({"item": {"text": "t", "label": 1}}), "evals")
    field, why = refused_at(browser, file=file_id)
    assert field == "prompt"
    assert "there is text, label" in why
    field, _ = refused_at(browser, file=file_id, prompt="{{item.text}}")
    assert field == "reference"


def test_a_file_that_holds_no_questions_is_refused(
    browser: TestClient, http: TestClient, database: Database, storage: Storage
):
    job = submit(http)
    train(database, storage)
    result = http.get(f"/v1/fine_tuning/jobs/{job['id']}").json()["result_files"][0]
    field, why = refused_at(browser, file=result)
    assert field == "file"
    assert "its purpose is 'fine-tune-results'" in why


def test_a_dataset_that_is_too_long_to_ask_whole(
    browser: TestClient, http: TestClient, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(eval_items, "MOST", 2)
    file_id = upload(http, lines(*({"prompt": str(n), "completion": "c"} for n in range(4))))
    field, why = refused_at(browser, file=file_id)
    assert field == "at_most"
    assert "more than 2 samples" in why
    _, item = start(browser, http, file=file_id, at_most="2")
    assert [json.loads(line)["item"]["prompt"] for line in item["lines"]] == ["0", "1"]


def test_a_worker_finds_all_that_it_needs(browser: TestClient, http: TestClient, database: Database):
    run, _ = start(browser, http, file=upload(http, CHAT))
    assert claim(database).job_id == run["id"]


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("ft:meta-llama/Llama-2-7b-hf:hone:reviews:abcd1234", "reviews"),
        ("ft:tiny:hone:reviews:abcd1234:ckpt-step-88", "reviews at step 88"),
        ("ft:meta/tiny:hone::abcd1234", "tiny abcd1234"),
        ("meta-llama/Llama-2-7b-hf", "Llama-2-7b-hf"),
    ],
)
def test_a_model_is_called_as_people_do(model: str, name: str):
    assert short_name(model) == name
