import json
from pathlib import Path

import pytest

from core.catalogue import FolderModel
from core.dataset import Message
from core.errors import DatasetError
from core.specs import EvaluationSpec
from worker.items import load_items, render_pair
from worker.protocol import EvaluationInput

CRITERION = {
    "type": "code_bleu", "name": "c", "input": "{{sample.output_text}}\n", "reference": "{{item.answer}}",
}  # fmt: skip


def job(tmp_path: Path, content: str, **criterion) -> EvaluationInput:
    path = tmp_path / "items.jsonl"
    path.write_text(content)
    spec = EvaluationSpec(
        model="tiny",
        base_model="tiny",
        items_file="file-1",
        messages=[{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Q: {{item.q}}"}],
        criteria=[CRITERION | criterion],
    )
    return EvaluationInput(
        job_id="j", spec=spec, base_model=FolderModel(source="folder", path=tmp_path), cache=tmp_path, items_file=path
    )


def lines(*items: dict) -> str:
    return "\n".join(json.dumps({"item": item}) for item in items)


def test_items_become_prompts_and_pairs(tmp_path):
    given = job(tmp_path, "\n" + lines({"q": "one", "answer": "1"}, {"q": 2, "answer": "2"}) + "\n\n")
    first, second = load_items(given)
    assert (first.line, second.line) == (2, 3)
    assert first.messages == (Message("system", "Be brief."), Message("user", "Q: one"))
    assert second.messages[1].content == "Q: 2"
    assert render_pair(given.spec.criteria[0], second, "x = 1") == ("x = 1\n", "2")


def test_a_field_missing_from_the_prompt_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"line 2, field 'item\.q': is missing.*there is item\.answer"):
        load_items(job(tmp_path, lines({"q": "one", "answer": "1"}, {"answer": "2"})))


@pytest.mark.parametrize("where", ["input", "reference"])
def test_a_field_missing_from_a_criterion_is_named_before_anything_runs(tmp_path, where):
    with pytest.raises(DatasetError, match=r"line 1, field 'item\.nope'"):
        load_items(job(tmp_path, lines({"q": "one", "answer": "1"}), **{where: "{{item.nope}}"}))


def test_an_answer_can_not_be_asked_for_before_it_is_there(tmp_path):
    given = job(tmp_path, lines({"q": "one", "answer": "1"}))
    spec = given.spec.model_copy(
        update={"messages": (given.spec.messages[1].model_copy(update={"content": "{{sample.output_text}}"}),)}
    )
    with pytest.raises(DatasetError, match=r"field 'sample\.output_text'"):
        load_items(given.model_copy(update={"spec": spec}))


@pytest.mark.parametrize(("content", "word"), [("", "no items"), ("{}\n", "line 1"), ('{"item": {}}\n{"it', "line 2")])
def test_a_file_that_can_not_be_used_is_refused(tmp_path, content, word):
    given = job(tmp_path, content, reference="x")
    spec = given.spec.model_copy(update={"messages": given.spec.messages[:1]})
    with pytest.raises(DatasetError, match=word):
        load_items(given.model_copy(update={"spec": spec}))
