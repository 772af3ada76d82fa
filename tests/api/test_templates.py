import pytest

from api.templates import item_paths, missing_path, normalize, render


def test_references_are_found_and_filled():
    template = normalize("{{ item.a }} and {{item.b.c}} {not this}", sample=False)
    assert template == "{{item.a}} and {{item.b.c}} {not this}"
    assert item_paths([template, "{{sample.output_text}}"]) == {"a", "b.c"}
    assert render(template, {"a": "{{item.b}}", "b": {"c": [1, "é"]}}) == '{{item.b}} and [1, "é"] {not this}'


@pytest.mark.parametrize(
    "template",
    ["{{", "{{item}}",
     "{{item.}}", "{{item.a", "{{item.a}", "{{item.a|upper}}", "{{item['a']}}", "{{item.a-b}}", "{{{item.a}}}",
     "{{sample.output_json}}", "{{ 1 }}", "{{item.a}} {{x}}"],
)  # fmt: skip
def test_anything_else_in_braces_is_refused(template: str):
    with pytest.raises(ValueError, match="only"):
        normalize(template, sample=True)


def test_null_is_as_good_as_missing():
    assert missing_path({"a": {"b": None}}, ["a.b"]) == "a.b"
    assert missing_path({"a": {"b": 0}}, ["a.b"]) is None
    assert missing_path({"a": "text"}, ["a", "a.b"]) == "a.b"
