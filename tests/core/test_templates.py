"""Templates: what may stand in them, and that nothing is left out in silence."""

import pytest

from core.errors import DatasetError
from core.templates import item_paths, missing_path, normalize, render

VALUES = {
    "item": {
        "text": "a {{item.other}}",
        "n": 3,
        "deep": {"x": {"y": "z"}},
        "list": ["é", None],
        "null": None,
        "no": False,
    },
    "sample": {"output_text": ""},
}


def test_references_are_found():
    template = normalize("{{ item.a }} and {{item.b.c}} {not this}", sample=False)
    assert template == "{{item.a}} and {{item.b.c}} {not this}"
    assert item_paths([template, "{{sample.output_text}}"]) == {"a", "b.c"}


@pytest.mark.parametrize(
    "template",
    ["{{", "{{item}}",
     "{{item.}}", "{{item.a", "{{item.a}", "{{item.a|upper}}", "{{item['a']}}", "{{item.a-b}}", "{{{item.a}}}",
     "{{sample.output_json}}", "{{ 1 }}", "{{item.a}} {{x}}"],
)  # fmt: skip
def test_anything_else_in_braces_is_refused(template: str):
    with pytest.raises(ValueError, match="only"):
        normalize(template, sample=True)


def test_an_answer_is_refused_where_there_is_none_yet():
    assert normalize("{{ sample.output_text }}", sample=True) == "{{sample.output_text}}"
    with pytest.raises(ValueError, match=r"only \{\{item\.<name>\}\} may stand"):
        normalize("{{sample.output_text}}", sample=False)


def test_null_is_as_good_as_missing():
    assert missing_path({"a": {"b": None}}, ["a.b"]) == "a.b"
    assert missing_path({"a": {"b": 0}}, ["a.b"]) is None
    assert missing_path({"a": "text"}, ["a", "a.b"]) == "a.b"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("no fields", "no fields"),
        ("{{item.deep.x.y}}!", "z!"),
        ("{{ item.n }}/{{item.n}}", "3/3"),
        ("{{item.text}}", "a {{item.other}}"),
        ("{{item.list}} {{item.no}}", '["é", null] false'),
        ("{{item.deep}} {not this}", '{"x": {"y": "z"}} {not this}'),
        ("[{{sample.output_text}}]", "[]"),
        ("{item.n} {{}", "{item.n} {{}"),
        ("def f(): return {'a': {'b': 1}}", "def f(): return {'a': {'b': 1}}"),
    ],
)
def test_fields_are_filled_in(template, text):
    assert render(template, VALUES, where="line 1") == text


@pytest.mark.parametrize(
    "path",
    [
        "item.missing",
        "item.deep.missing",
        "item.n.x",
        "item.null",
        "sample.text",
        "other",
        "",
        "item..n",
        "item.list.0",
    ],
)
def test_a_field_that_is_not_there_is_named_with_its_place(path):
    with pytest.raises(DatasetError) as caught:
        render(f"x {{{{{path}}}}}", VALUES, where="line 7")
    assert caught.value.message.startswith(f"line 7, field '{path}': ")
    assert caught.value.code == "missing_field"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("item.deep.y", r"there is item\.deep\.x\)"),
        ("item.deep.y.z", r"there is item\.deep\.x\)"),
        ("item.n.x", r"'item\.n' has no fields of its own\)"),
        ("other", r"there is item, sample\)"),
    ],
)
def test_the_message_tells_which_fields_there_are(path, words):
    with pytest.raises(DatasetError, match=words):
        render("{{" + path + "}}", VALUES, where="line 1")
