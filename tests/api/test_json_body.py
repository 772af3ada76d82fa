import json

import pytest

from tests.api.conftest import Shared
from tests.api.driving import EVAL, error_of

JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ('"\\u0000"', "NUL"),
        ('{"k\\u0000": 1}', "NUL"),
        ('"\\ud800"', "surrogate"),
        ('{"a": ["\\udfff"]}', "surrogate"),
        ("NaN", "NaN is no JSON number"),
        ("-Infinity", "-Infinity is no JSON number"),
        ("1e999", "too large"),
        ("9223372036854775808", "too large"),
        ("1" * 5000, "too large|digits"),
        ("[" * 70 + "]" * 70, "64 levels"),
        ("[" * 9000 + "]" * 9000, "too deeply"),
        ("{", "property name|delimiter"),
    ],
    ids=["nul", "nul-key", "high", "low", "nan", "infinity", "float", "integer", "digits", "deep", "abyss", "broken"],
)
def test_what_no_database_can_store_is_a_400_wherever_it_stands(shared: Shared, value: str, words: str):
    bodies = {
        "/v1/fine_tuning/jobs": f'{{"model": "tiny", "training_file": {value}}}',
        "/v1/evals": json.dumps(EVAL)[:-1].replace('{"type": "object"}', value) + "}",
        "/v1/evals/eval_x/runs": value,
    }
    for path, body in bodies.items():
        answer = shared.http.post(path, content=body.encode(), headers=JSON)
        assert answer.status_code == 400, answer.text
        assert any(word in error_of(answer)["message"] for word in words.split("|")), answer.text
    assert shared.made() == {"files": 0, "jobs": 0, "objects": 0}


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"", JSON),
        (b"\xff\xfe", JSON),
        (b"[]", JSON),
        (b'"x"', JSON),
        (b"null", JSON),
        (b'{"model": 1}', {}),
        (b"a=b", {}),
    ],
)
def test_a_body_that_is_no_object_is_a_400(shared: Shared, body: bytes, headers: dict[str, str]):
    answer = shared.http.post("/v1/fine_tuning/jobs", content=body, headers=headers)
    assert answer.status_code == 400
    error_of(answer)


def test_text_in_any_script_is_kept(shared: Shared):
    metadata = {"emoji": "\U0001f600", "greek": "λ", "line": "\u2028"}
    made = shared.http.post("/v1/evals", json={**EVAL, "metadata": metadata}).json()
    assert shared.http.get(f"/v1/evals/{made['id']}").json()["metadata"] == metadata


@pytest.mark.parametrize("url", ["/v1/files/a%00b", "/v1/models/a%00", "/v1/files?after=%00", "/v1/files?purpose=a%00"])
def test_nul_in_a_url_is_a_400(shared: Shared, url: str):
    answer = shared.http.get(url)
    assert answer.status_code == 400
    assert error_of(answer)["code"] == "invalid_url"


@pytest.mark.parametrize(
    "url",
    [
        "/v1/files/%ff%fe",
        "/v1/files/" + "x" * 5000,
        "/v1/files/%F0%9F%98%80",
        "/v1/fine_tuning/jobs/'; DROP TABLE jobs; --",
        "/v1/models/ft:%25s:{}",
    ],
)
def test_an_id_that_can_not_be_is_a_404(shared: Shared, url: str):
    assert shared.http.get(url).status_code == 404


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=101", "limit=x", "limit=99999999999999999999", "after=" + "x" * 65]
)
def test_a_bad_query_parameter_is_a_400_that_names_it(shared: Shared, query: str):
    answer = shared.http.get(f"/v1/fine_tuning/jobs?{query}")
    assert answer.status_code == 400
    assert error_of(answer)["param"] == query.partition("=")[0]
