import pytest
from openai import NotFoundError, OpenAI
from openai.types.eval_create_response import EvalCreateResponse
from openai.types.eval_delete_response import EvalDeleteResponse
from starlette.testclient import TestClient

from tests.api.conftest import Shared
from tests.api.driving import EVAL, error_of, run_body


def test_openais_client_defines_renames_lists_and_deletes(client: OpenAI):
    made = client.evals.create(**EVAL, metadata={"k": "v"})
    raw = client.evals.with_raw_response.retrieve(made.id).http_response.json()
    # The client's types know no code_bleu; everything else must fit them.
    EvalCreateResponse.model_validate({**raw, "testing_criteria": []}, strict=True)
    assert set(raw["data_source_config"]["schema"]["properties"]) == {"item", "sample"}
    assert raw["testing_criteria"][0]["input"] == "{{sample.output_text}}"
    assert raw["testing_criteria"][0]["weights"] == [0.25] * 4
    assert client.evals.update(made.id, name="new").metadata == {"k": "v"}
    assert client.evals.update(made.id, metadata=None).metadata is None
    nameless = {field: value for field, value in EVAL.items() if field != "name"}
    other = client.evals.create(**nameless)
    assert [row.id for row in client.evals.list(limit=1)] == [made.id, other.id]
    assert [row.id for row in client.evals.list(order="desc")] == [other.id, made.id]
    assert client.evals.retrieve(made.id).name == "new"
    deleted = client.evals.with_raw_response.delete(made.id).http_response.json()
    assert EvalDeleteResponse.model_validate(deleted, strict=True).eval_id == made.id
    with pytest.raises(NotFoundError):
        client.evals.retrieve(made.id)


def test_evals_sort_by_their_last_change_and_pages_hold_when_others_are_made(client: OpenAI):
    first, second, third = (client.evals.create(**EVAL).id for _ in range(3))
    client.evals.update(first, name="changed")
    page = client.evals.list(order_by="updated_at", limit=2)
    assert [row.id for row in page.data] == [second, third]
    client.evals.create(**EVAL)
    assert page.get_next_page().data[0].id == first
    newest = client.evals.list(order_by="updated_at", order="desc", limit=1).get_next_page()
    assert [row.id for row in newest.data] == [first]


CHECK = {
    "type": "string_check", "name": "right", "operation": "ilike",
    "input": "{{sample.output_text}}", "reference": "{{item.completion}}",
}  # fmt: skip
SIMILARITY = {
    "type": "text_similarity", "name": "close", "evaluation_metric": "rouge_l", "pass_threshold": 0.5,
    "input": "{{sample.output_text}}", "reference": "{{item.completion}}",
}  # fmt: skip


def _criterion(**fields):
    return {"testing_criteria": [{**EVAL["testing_criteria"][0], **fields}]}


def _similarity(metric: str, **fields):
    return {"testing_criteria": [{**SIMILARITY, "evaluation_metric": metric, **fields}]}


def _check(operation: str):
    return {"testing_criteria": [{**CHECK, "operation": operation}]}


def test_openais_own_criteria_come_back_as_its_client_knows_them(client: OpenAI):
    made = client.evals.create(**EVAL | {"testing_criteria": [CHECK, SIMILARITY]})
    raw = client.evals.with_raw_response.retrieve(made.id).http_response.json()
    EvalCreateResponse.model_validate(raw, strict=True)
    assert raw["testing_criteria"] == [CHECK, SIMILARITY]
    check, similarity = made.testing_criteria
    assert (type(check).__name__, check.operation) == ("StringCheckGrader", "ilike")
    assert (similarity.evaluation_metric, similarity.pass_threshold) == ("rouge_l", 0.5)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"data_source_config": {"type": "logs"}}, "data_source_config", "'logs'. Use the type 'custom'"),
        ({"data_source_config": {"type": "stored_completions"}}, "data_source_config", "'stored_completions'"),
        ({"data_source_config": {"type": "custom"}}, "data_source_config.item_schema", "is missing"),
        (_criterion(type="regex"), "testing_criteria[0]", "'code_bleu' or 'string_check' or 'text_similarity'"),
        (_criterion(type="python"), "testing_criteria[0]", "it runs no code that requests bring"),
        (_criterion(type="score_model"), "testing_criteria[0]", "no model that judges"),
        (_criterion(type="label_model"), "testing_criteria[0]", "no model that judges"),
        (_criterion(type="multi"), "testing_criteria[0]", "criteria of their own"),
        (_similarity("cosine"), "testing_criteria[0].evaluation_metric", "it compares embeddings"),
        (_similarity("meteor"), "testing_criteria[0].evaluation_metric", "WordNet"),
        (_similarity("wer"), "testing_criteria[0].evaluation_metric", "'fuzzy_match', 'bleu'"),
        (_similarity("bleu", pass_threshold=2), "testing_criteria[0].pass_threshold", "less than or equal to 1"),
        (_similarity("bleu", colour="red"), "testing_criteria[0].colour", "Unknown field"),
        (_similarity("bleu", input="{{sample.choices}}"), "testing_criteria[0]", "{{sample.output_text}}"),
        (_check("gt"), "testing_criteria[0].operation", "'eq', 'ne', 'like' or 'ilike'"),
        (_criterion(lang="cobol"), "testing_criteria[0].lang", "'python'"),
        (_criterion(lang="go", scorer="package"), "testing_criteria[0]", "leave scorer out"),
        (_criterion(weights=[1, 1, 0, 0]), "testing_criteria[0]", "sum to 1"),
        (_criterion(pass_threshold=2), "testing_criteria[0].pass_threshold", "less than or equal to 1"),
        (_criterion(input="{{os.environ}}"), "testing_criteria[0]", "only {{item.<name>}}"),
        (_criterion(reference="{% for %}{{ 7*7 }}"), "testing_criteria[0]", "only {{item.<name>}}"),
        ({"testing_criteria": []}, "testing_criteria", "at least 1"),
        ({"testing_criteria": EVAL["testing_criteria"] * 2}, "testing_criteria", "name of its own"),
        ({"colour": 1}, "colour", "Known here: name, data_source_config"),
        ({"name": ""}, "name", "at least 1"),
    ],
)
def test_a_bad_eval_is_a_400_that_says_what_is_supported(shared: Shared, fields, param, words):
    answer = shared.http.post("/v1/evals", json={**EVAL, **fields})
    assert answer.status_code == 400
    told = error_of(answer)
    assert told["param"] == param
    assert words in told["message"]
    assert shared.http.get("/v1/evals").json()["data"] == []


def test_an_eval_with_a_run_that_waits_stays_until_it_has_ended(http: TestClient):
    eval_id = http.post("/v1/evals", json=EVAL).json()["id"]
    source = {"type": "file_content", "content": [{"item": {"prompt": "p", "completion": "c"}}]}
    run = http.post(f"/v1/evals/{eval_id}/runs", json=run_body(source)).json()
    refused = http.delete(f"/v1/evals/{eval_id}")
    assert refused.status_code == 400
    assert run["id"] in error_of(refused)["message"]
    assert http.post(f"/v1/evals/{eval_id}/runs/{run['id']}/cancel").status_code == 200
    assert http.delete(f"/v1/evals/{eval_id}").status_code == 200
    assert http.get(f"/v1/evals/{eval_id}/runs/{run['id']}").status_code == 404
