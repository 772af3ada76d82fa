"""Graders by themselves: what they say of one text, and what is refused."""

from typing import Any

import pytest

from core import graders
from tests.api.conftest import Shared
from tests.api.driving import error_of

SAME = {
    "type": "string_check",
    "name": "same",
    "input": "{{ sample.output_text }}",
    "reference": "{{item.wanted}}",
    "operation": "eq",
}
LONG, ITEM = "a" * 1001, {"wanted": "a"}
NEAR = {**{name: SAME[name] for name in ("input", "reference")}, "type": "text_similarity", "name": "near"}


def ask(shared: Shared, path: str, grader: dict[str, Any], **more: Any) -> Any:
    return shared.http.post(f"/v1/fine_tuning/alpha/graders/{path}", json={"grader": grader, **more})


@pytest.mark.parametrize(
    ("grader", "sample", "reward"),
    [
        (SAME, "a", 1),
        (SAME, "A", 0),
        ({**SAME, "operation": "ne"}, "A", 1),
        ({**SAME, "operation": "like"}, "an a", 1),
        ({**SAME, "operation": "ilike"}, "AN A", 1),
        ({**NEAR, "evaluation_metric": "fuzzy_match"}, "a", 1),
        ({**NEAR, "evaluation_metric": "fuzzy_match"}, "ab", 2 / 3),
        ({**NEAR, "evaluation_metric": "rouge_1"}, "a b", 2 / 3),
    ],
)
def test_a_grader_rewards_one_text(shared: Shared, grader: dict[str, Any], sample: str, reward: float):
    answer = ask(shared, "run", grader, model_sample=sample, item={"wanted": "a"})
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert told["reward"] == pytest.approx(reward)
    assert told["metadata"]["scores"] == {grader["name"]: told["reward"]}
    assert (told["metadata"]["name"], told["metadata"]["type"]) == (grader["name"], grader["type"])
    assert told["metadata"]["execution_time"] >= 0
    assert not any(told["metadata"]["errors"].values())


def test_a_valid_grader_comes_back_as_it_was_understood(shared: Shared):
    assert ask(shared, "validate", SAME).json() == {"grader": {**SAME, "input": "{{sample.output_text}}"}}
    code = {"type": "code_bleu", "name": "c", "input": "{{sample.output_text}}", "reference": "x", "lang": "python"}
    assert ask(shared, "validate", code).json()["grader"]["weights"] == [0.25] * 4


@pytest.mark.parametrize(
    ("path", "grader", "more", "param", "words"),
    [
        ("validate", {"type": "python", "name": "p", "source": "1"}, {}, "grader", "no code that requests bring"),
        ("validate", {**SAME, "operation": "is"}, {}, "grader.operation", "'eq', 'ne', 'like' or 'ilike'"),
        ("validate", {**SAME, "input": "{{sample.output_json}}"}, {}, "grader", "only {{item.<name>}}"),
        ("validate", {**NEAR, "evaluation_metric": "cosine"}, {}, "grader.evaluation_metric", "compares embeddings"),
        ("validate", {"name": "x"}, {}, "grader", "'type'"),
        ("run", SAME, {}, "model_sample", "missing"),
        ("run", SAME, {"model_sample": "a"}, "item", "wanted"),
        ("run", SAME, {"model_sample": "a", "item": 5}, "item", "dictionary"),
        ("run", {**NEAR, "evaluation_metric": "bleu"}, {"model_sample": LONG, "item": ITEM}, "grader", "long"),
        (
            "run",
            {"type": "code_bleu", "name": "c", "input": "a", "reference": "x", "lang": "python"},
            {"model_sample": "a"},
            "grader.type",
            "Use it in an eval",
        ),
    ],
)  # fmt: skip
def test_what_can_not_be_graded_is_a_400(shared: Shared, monkeypatch, path, grader, more, param, words):
    monkeypatch.setattr(graders, "MOST_CHARACTERS", 1000)
    answer = ask(shared, path, grader, **more)
    assert answer.status_code == 400
    assert error_of(answer)["param"] == param
    assert words in error_of(answer)["message"]
