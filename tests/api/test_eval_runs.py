import copy
import json

import pytest
from openai import OpenAI
from openai.types.evals.run_create_response import RunCreateResponse
from openai.types.evals.runs.output_item_retrieve_response import OutputItemRetrieveResponse
from starlette.testclient import TestClient

from core.errors import TrainingError
from core.specs import EvaluationSpec
from core.storage import Storage
from models.database import Database
from models.tables import Job
from tests.api.conftest import Shared
from tests.api.driving import EVAL, ITEMS, error_of, evaluate, fail_job, run_body, submit, train, upload

INLINE = {"type": "file_content", "content": [{"item": {"prompt": "add", "completion": "def"}}]}
# The client's type can't be null there; OpenAI's own examples are.
NO_ERROR = {"code": "", "message": ""}


def test_openais_client_runs_an_eval_and_reads_its_items(client: OpenAI, database: Database, storage: Storage):
    items = client.files.create(file=("items.jsonl", ITEMS), purpose="evals")
    made = client.evals.create(**EVAL)
    body = run_body({"type": "file_id", "id": items.id}, name="first", metadata={"k": "v"})
    run = client.evals.runs.create(made.id, **body)
    assert (run.status, run.name, run.model, run.metadata) == ("queued", "first", "tiny", {"k": "v"})
    with database.read() as session:
        job = session.get_one(Job, run.id)
        spec = EvaluationSpec.model_validate(job.spec)
    assert spec.items_file == items.id
    assert run.per_model_usage[0].total_tokens == 0
    assert spec.messages[0].content == "{{item.prompt}}"
    assert (spec.sampling.max_tokens, spec.sampling.top_p, spec.base_model) == (64, 1.0, "tiny")

    evaluate(database, storage)

    raw = client.evals.runs.with_raw_response.retrieve(run.id, eval_id=made.id).http_response.json()
    RunCreateResponse.model_validate({**raw, "error": NO_ERROR}, strict=True)
    assert raw["status"] == "completed"
    assert raw["error"] is None
    assert raw["result_counts"] == {"total": 2, "passed": 1, "failed": 1, "errored": 0}
    assert raw["per_testing_criteria_results"] == [{"testing_criteria": "similar", "passed": 1, "failed": 1}]
    used = {"invocation_count": 2, "prompt_tokens": 10, "cached_tokens": 0}
    assert raw["per_model_usage"] == [
        {"model_name": "tiny", **used, "completion_tokens": 6, "total_tokens": 16},
        {"model_name": "its-base", **used, "completion_tokens": 9, "total_tokens": 19},
    ]
    assert raw["hone"]["scores"]["criteria"][0]["model"]["codebleu"] == 0.5
    assert len(raw["hone"]["result_files"]) == 1
    assert [found.id for found in client.evals.runs.list(made.id, status="completed")] == [run.id]
    assert list(client.evals.runs.list(made.id, status="queued")) == []

    found = list(client.evals.runs.output_items.list(run.id, eval_id=made.id, limit=1))
    assert [item.datasource_item_id for item in found] == [0, 1]
    passed = client.evals.runs.output_items.list(run.id, eval_id=made.id, status="pass")
    assert [item.id for item in passed] == [found[0].id]
    items_api = client.evals.runs.output_items.with_raw_response
    raw = items_api.retrieve(found[0].id, eval_id=made.id, run_id=run.id).http_response.json()
    OutputItemRetrieveResponse.model_validate({**raw, "sample": {**raw["sample"], "error": NO_ERROR}}, strict=True)
    assert raw["sample"]["input"] == [{"role": "user", "content": "add"}]
    assert raw["sample"]["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 3,
        "cached_tokens": 0,
        "total_tokens": 8,
    }
    assert raw["results"][0]["parts"]["syntax"] == 0.5
    assert raw["hone"] == {"base": None, "code": "x", "finish_reason": "fence"}
    assert raw["sample"]["finish_reason"] == "stop"

    deleted = client.evals.runs.delete(run.id, eval_id=made.id)
    assert (deleted.run_id, deleted.deleted) == (run.id, True)
    assert list(client.evals.runs.list(made.id)) == []


def test_a_run_is_cancelled_at_both_places(http: TestClient):
    eval_id = http.post("/v1/evals", json=EVAL).json()["id"]
    for place in ("", "/cancel"):
        run = http.post(f"/v1/evals/{eval_id}/runs", json=run_body(INLINE)).json()
        url = f"/v1/evals/{eval_id}/runs/{run['id']}"
        refused = http.delete(url)
        assert (refused.status_code, error_of(refused)["code"]) == (400, "run_active")
        assert http.post(url + place).json()["status"] == "canceled"
        assert error_of(http.post(url + place))["code"] == "job_ended"


def test_inline_items_become_a_file_so_that_the_job_has_all_it_needs(http: TestClient):
    eval_id = http.post("/v1/evals", json=EVAL).json()["id"]
    run = http.post(f"/v1/evals/{eval_id}/runs", json=run_body(INLINE)).json()
    file_id = run["data_source"]["source"]["id"]
    assert http.get(f"/v1/files/{file_id}").json()["filename"] == "inline.jsonl"
    assert http.get(f"/v1/files/{file_id}/content").json() == INLINE["content"][0]
    assert http.delete(f"/v1/files/{file_id}").status_code == 400


JSONL = {
    "type": "jsonl",
    "source": {
        "type": "file_content",
        "content": [
            {"item": {"completion": "x = 1"}, "sample": {"output_text": "x = 1"}},
            {"item": {"completion": "y"}, "sample": {"output_text": "z"}},
        ],
    },
}


@pytest.mark.parametrize("by_file", [False, True])
def test_a_run_over_items_that_bring_their_answers_asks_no_model(client: OpenAI, database: Database, by_file):
    made = client.evals.create(**EVAL)
    source = copy.deepcopy(JSONL)
    if by_file:
        lines = "".join(json.dumps(entry) + "\n" for entry in source["source"]["content"])
        file = client.files.create(file=("items.jsonl", lines.encode()), purpose="evals")
        source["source"] = {"type": "file_id", "id": file.id}
    run = client.evals.runs.create(made.id, data_source=source)
    raw = client.evals.runs.with_raw_response.retrieve(run.id, eval_id=made.id).http_response.json()
    RunCreateResponse.model_validate({**raw, "error": NO_ERROR}, strict=True)
    assert (raw["model"], raw["name"], raw["per_model_usage"]) == ("", "jsonl run", [])
    assert raw["data_source"]["type"] == "jsonl"
    lines = client.files.content(raw["data_source"]["source"]["id"]).text.splitlines()
    assert [json.loads(line) for line in lines] == JSONL["source"]["content"]
    with database.read() as session:
        spec = EvaluationSpec.model_validate(session.get_one(Job, run.id).spec)
    assert (spec.source, spec.model, spec.base_model, spec.messages) == ("jsonl", "", "", ())
    assert client.evals.runs.cancel(run.id, eval_id=made.id).status == "canceled"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"item": {"completion": "x"}}, "Item 1 brings no answer"),
        ({"item": {"completion": "x"}, "sample": {"output_text": None}}, "Item 1 brings no answer"),
        ({"item": {"prompt": "x"}, "sample": {"output_text": "y"}}, "Item 1 has no 'completion'"),
    ],
)
def test_items_that_lack_what_a_criterion_names_are_refused(shared: Shared, content, words):
    eval_id = shared.http.post("/v1/evals", json=EVAL).json()["id"]
    body = {"data_source": {"type": "jsonl", "source": {"type": "file_content", "content": [content]}}}
    answer = shared.http.post(f"/v1/evals/{eval_id}/runs", json=body)
    assert answer.status_code == 400
    assert error_of(answer)["param"] == "data_source.source.content"
    assert words in error_of(answer)["message"]
    assert shared.made() == {"files": 0, "jobs": 0, "objects": 0}


def test_how_models_are_asked_is_refused_where_none_is(http: TestClient):
    eval_id = http.post("/v1/evals", json=EVAL).json()["id"]
    answer = http.post(f"/v1/evals/{eval_id}/runs", json={"data_source": JSONL, "hone": {"compare_base": True}})
    assert answer.status_code == 400
    assert "a jsonl run asks none" in error_of(answer)["message"]


def test_a_failed_run_says_why(http: TestClient, database: Database):
    eval_id = http.post("/v1/evals", json=EVAL).json()["id"]
    run = http.post(f"/v1/evals/{eval_id}/runs", json=run_body(INLINE)).json()
    fail_job(database, TrainingError("No memory.", code="out_of_memory"))
    failed = http.get(f"/v1/evals/{eval_id}/runs/{run['id']}").json()
    assert (failed["status"], failed["error"]) == ("failed", {"code": "out_of_memory", "message": "No memory."})


def test_a_fine_tune_is_evaluated_beside_its_base(http: TestClient, database: Database, storage: Storage):
    submit(http)
    train(database, storage)
    body = run_body(INLINE, hone={"compare_base": False, "stop_at_fence": False})
    body["data_source"]["model"] = model = http.get("/v1/models").json()["data"][-1]["id"]
    eval_id = http.post("/v1/evals", json=EVAL).json()["id"]
    run = http.post(f"/v1/evals/{eval_id}/runs", json=body).json()
    with database.read() as session:
        spec = EvaluationSpec.model_validate(session.get_one(Job, run["id"]).spec)
    assert (spec.model, spec.base_model, spec.prompt_template, spec.compare_base) == (model, "tiny", "chat", False)
    assert not spec.stops_at_fence
    assert (run["hone"]["compare_base"], run["hone"]["stop_at_fence"]) == (False, False)


@pytest.mark.parametrize(
    ("path", "value", "param", "words"),
    [
        (("type",), "responses", "data_source", "no responses API. Use the type 'completions' or 'jsonl'"),
        (("type",), "jsonl", "data_source.model", "Unknown field"),
        (("input_messages", "template", 0, "content"), [{"type": "input_image", "image_url": "x"}],
         "data_source.input_messages.template[0].content", "no images, no audio"),
        (("model",), "gpt-4", "data_source.model", "Use one of: org/base, tiny"),
        (("input_messages",), {"type": "item_reference", "item_reference": "item.x"},
         "data_source.input_messages", "'template'"),
        (("input_messages", "template"), [], "data_source.input_messages.template", "at least 1"),
        (("input_messages", "template", 0, "role"), "tool", "data_source.input_messages.template[0].role", "'user'"),
        (("input_messages", "template", 0, "content"), "{{sample.output_text}}",
         "data_source.input_messages.template[0].content", "only {{item.<name>}}"),
        (("input_messages", "template", 0, "content"), "{{item.nothing}}",
         "data_source.source.content", "Item 1 has no 'nothing'"),
        (("source",), {"type": "stored_completions"}, "data_source.source", "'file_id' or 'file_content'"),
        (("source",), {"type": "file_id", "id": "file-none"}, "data_source.source.id", "no file 'file-none'"),
        (("source",), {"type": "file_content", "content": []}, "data_source.source.content", "at least 1"),
        (("source",), {"type": "file_content", "content": [{"item": {"prompt": "a", "completion": None}}]},
         "data_source.source.content", "Item 1 has no 'completion'"),
        (("sampling_params",), {"temperature": 3},
         "data_source.sampling_params.temperature", "less than or equal to 2"),
        (("sampling_params",), {"max_tokens": 1, "max_completion_tokens": 2}, "data_source.sampling_params", "differ"),
        (("sampling_params",), {"tools": []}, "data_source.sampling_params.tools", "Known here: max_completion_tokens"),
    ],
)  # fmt: skip
def test_a_bad_run_is_a_400_and_nothing_stays(shared: Shared, path, value, param, words):
    eval_id = shared.http.post("/v1/evals", json=EVAL).json()["id"]
    body = copy.deepcopy(run_body(INLINE))
    place = body["data_source"]
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    answer = shared.http.post(f"/v1/evals/{eval_id}/runs", json=body)
    assert answer.status_code == 400
    told = error_of(answer)
    assert told["param"] == param
    assert words in told["message"]
    assert shared.made() == {"files": 0, "jobs": 0, "objects": 0}


def test_a_file_of_items_must_be_one_and_have_what_the_templates_name(http: TestClient):
    eval_id = http.post("/v1/evals", json=EVAL).json()["id"]
    lacking = b'{"item": {"prompt": "a", "completion": "b"}}\n{"item": {"prompt": "a"}}\n'
    for file_id, words in [
        (upload(http), "purpose 'evals'"),
        (upload(http, lacking, "evals"), "Item 2 has no 'completion'"),
    ]:
        answer = http.post(f"/v1/evals/{eval_id}/runs", json=run_body({"type": "file_id", "id": file_id}))
        assert answer.status_code == 400
        assert words in error_of(answer)["message"]
        assert error_of(answer)["param"] == "data_source.source.id"
