import pytest

from core.errors import DatasetError
from worker.templates import render

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


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("no fields", "no fields"),
        ("{{item.deep.x.y}}!", "z!"),
        ("{{ item.n }}/{{item.n}}", "3/3"),
        ("{{item.text}}", "a {{item.other}}"),
        ("{{item.list}} {{item.no}}", '["é", null] false'),
        ("[{{sample.output_text}}]", "[]"),
        ("{item.n} {{}", "{item.n} {{}"),
        ("def f(): return {'a': {'b': 1}}", "def f(): return {'a': {'b': 1}}"),
    ],
)
def test_fields_are_filled_in(template, text):
    assert render(template, VALUES, line=1) == text


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
def test_a_field_that_is_not_there_is_named_with_its_line(path):
    with pytest.raises(DatasetError) as caught:
        render(f"x {{{{{path}}}}}", VALUES, line=7)
    assert caught.value.message.startswith(f"line 7, field '{path}': ")
    assert caught.value.code == "missing_field"


def test_the_message_tells_which_fields_there_are():
    with pytest.raises(DatasetError, match=r"there is item\.deep\.x\)"):
        render("{{item.deep.y}}", VALUES, line=1)
