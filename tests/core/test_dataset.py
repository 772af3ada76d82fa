"""Datasets: what is accepted, and how each problem is named."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.dataset import check_items, check_training, read_items, read_lines, read_samples, require_usable
from core.errors import DatasetError

LIMIT = 2000


def lines(*records: object) -> list[bytes]:
    return ["\n".join(json.dumps(record) for record in records).encode()]


CHAT = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
COMPLETION = {"prompt": "q", "completion": "a"}
INSTRUCTION = {"instruction": "q", "input": "i", "output": "a"}


@pytest.mark.parametrize(
    ("record", "format"), [(CHAT, "chat"), (COMPLETION, "completion"), (INSTRUCTION, "instruction")]
)
def test_each_format_is_told_by_its_keys_and_read_back(record, format):
    report = check_training(lines(record, record), LIMIT)
    assert (report.format, report.samples, report.problem_count) == (format, 2, 0)
    sample = next(read_samples(lines(record), LIMIT))
    assert [turn.content for turn in sample.messages] == ["q", "a"]
    assert [turn.trained for turn in sample.messages] == [False, True]


def test_an_instructions_input_is_kept_apart():
    assert next(read_samples(lines(INSTRUCTION), LIMIT)).messages[0].input == "i"
    assert next(read_samples(lines({**INSTRUCTION, "input": ""}), LIMIT)).messages[0].input is None


def test_an_answer_of_weight_zero_is_not_trained():
    record = {
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "a", "weight": 0},
            {"role": "user", "content": "r"},
            {"role": "assistant", "content": "b"},
        ]
    }
    assert [turn.trained for turn in next(read_samples(lines(record), LIMIT)).messages] == [False, False, False, True]


@pytest.mark.parametrize(
    ("raw", "where", "reason"),
    [
        (b'{"prompt": "q", "completion": "a"', "line 2", "not JSON"),
        (b"\xff\xfe", "line 2", "not UTF-8"),
        (b"[1, 2]", "line 2", "not an object"),
        (b'{"prompt": "q"}', "line 2, field 'completion'", "is missing"),
        (b'{"prompt": "q", "completion": ""}', "line 2, field 'completion'", "is empty"),
        (b'{"prompt": 3, "completion": "a"}', "line 2, field 'prompt'", "is a number"),
        (b'{"prompt": null, "completion": "a"}', "line 2, field 'prompt'", "is null"),
        (b'{"prompt": "a\\u0000b", "completion": "a"}', "line 2, field 'prompt'", "NUL"),
        (b'{"prompt": "\\ud800", "completion": "a"}', "line 2, field 'prompt'", "surrogate"),
        (b'{"prompt": NaN, "completion": "a"}', "line 2", "NaN"),
        (b'{"prompt": ' + b"[" * 5000, "line 2", "longer than"),
        (b"[" * 1900, "line 2", "nested too deeply"),
        (b'{"prompt": "' + b"x" * LIMIT + b'"}', "line 2", "longer than 2,000 bytes"),
        (b'{"text": "q"}', "line 2, field 'prompt'", "is missing"),
    ],
)
def test_a_line_that_cannot_be_used_is_named_with_its_field_reason_and_fix(raw, where, reason):
    report = check_training([json.dumps(COMPLETION).encode() + b"\n" + raw], LIMIT)
    assert (report.samples, report.problem_count) == (1, 1)
    text = str(report.problems[0])
    assert text.startswith(where), text
    assert reason in text
    assert report.problems[0].fix
    with pytest.raises(DatasetError, match="line 2"):
        require_usable(report, "data.jsonl")


@pytest.mark.parametrize(
    ("messages", "field", "reason"),
    [
        ([], "messages", "not a list"),
        ([{"role": "user", "content": "q"}], "messages[0].role", "no completion"),
        ([{"role": "robot", "content": "q"}], "messages[0].role", "robot"),
        ([{"role": "user", "content": "q"}, {"role": "assistant"}], "messages[1].content", "is missing"),
        ([{"role": "assistant", "content": "a"}], "messages", "no user's message"),
        (["hello"], "messages[0]", "is text"),
        (
            [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 2}],
            "messages[1].weight",
            "2",
        ),
        (
            [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0}],
            "messages",
            "weight 0",
        ),
    ],
)
def test_a_chat_that_cannot_be_trained_on_is_named_by_its_message(messages, field, reason):
    problem = check_training(lines({"messages": messages}), LIMIT).problems[0]
    assert problem.field == field
    assert reason in problem.reason


def test_a_file_that_mixes_formats_is_refused_at_the_first_other_line():
    problem = check_training(lines(COMPLETION, CHAT), LIMIT).problems[0]
    assert (problem.line, problem.field) == (2, "prompt")


def test_an_empty_file_is_refused():
    for chunks in ([], [b""], [b"\n\n  \n"]):
        with pytest.raises(DatasetError, match="no samples") as caught:
            require_usable(check_training(chunks, LIMIT), "data.jsonl")
        assert caught.value.code == "empty_file"


def test_a_byte_order_mark_and_windows_line_ends_are_accepted():
    raw = b"\xef\xbb\xbf" + json.dumps(COMPLETION).encode() + b"\r\n" + json.dumps(COMPLETION).encode() + b"\r\n"
    assert check_training([raw], LIMIT).samples == 2


def test_only_the_first_problems_are_kept_and_all_are_counted():
    report = check_training([b"{}\n" * 500], LIMIT)
    assert (report.problem_count, len(report.problems)) == (500, 20)


@given(
    st.lists(st.binary(max_size=40).filter(lambda part: b"\n" not in part), max_size=8),
    st.integers(min_value=1, max_value=9),
)
def test_lines_do_not_depend_on_how_the_stream_is_cut(parts, size):
    raw = b"\n".join(parts)
    chunks = [raw[start : start + size] for start in range(0, len(raw), size)]
    found = [line for _, line in read_lines(chunks, 1000)]
    assert [line for line in found if line] == [part for part in parts if part]


def test_a_line_without_end_is_held_in_bounded_memory():
    chunks = (b"x" * 1000 for _ in range(100_000))
    assert [(number, len(line)) for number, line in read_lines(chunks, 500)] == [(1, 501)]


@given(st.binary(max_size=300))
def test_any_bytes_give_a_report_and_never_an_exception(raw):
    check_training([raw], LIMIT)
    check_items([raw], LIMIT)


def test_items_are_checked_and_read_back():
    good = {"item": {"instruction": "q", "completion": "a", "nested": {"list": [1, "x"]}}}
    report = check_items(lines(good, {"item": 3}, {"item": {"a": {"b": "x\0y"}}}, {"item": {"a": ["\ud800"]}}), LIMIT)
    assert [problem.line for problem in report.problems] == [2, 3, 4]
    assert list(read_items(lines(good), LIMIT)) == [good["item"]]


def preference(**changes: object) -> dict[str, object]:
    line = {
        "input": {"messages": [{"role": "user", "content": "q"}], "tools": [], "parallel_tool_calls": True},
        "preferred_output": [{"role": "assistant", "content": "good"}],
        "non_preferred_output": [{"role": "assistant", "content": "bad"}],
    }
    return {**line, **changes}


def test_a_preference_has_its_prompt_and_both_answers():
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]
    turns += [{"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    lines = json.dumps(preference(input={"messages": turns})).encode()
    report = check_training([lines], 2**20)
    assert (report.format, report.samples, report.problem_count) == ("preference", 1, 0)
    (sample,) = read_samples([lines], 2**20)
    assert [(message.role, message.content) for message in sample.messages] == [
        ("system", "s"),
        ("user", "a"),
        ("assistant", "b"),
        ("user", "c"),
        ("assistant", "good"),
    ]
    assert [message.trained for message in sample.messages] == [False, False, False, False, True]
    assert (sample.rejected.content, sample.rejected.trained) == ("bad", True)


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"input": "q"}, "input", "is text, not an object"),
        ({"input": {"messages": []}}, "input.messages", "is not a list of messages"),
        ({"input": {"messages": [{"role": "user", "content": 1}]}}, "input.messages[0].content", "is a number"),
        ({"input": {"messages": [{"role": "system", "content": "s"}]}}, "input.messages[0].role", "system's"),
        ({"input": {"messages": [{"role": "user", "content": "q"}], "tools": [{}]}}, "input.tools", "has tools"),
        ({"preferred_output": []}, "preferred_output", "is not a list of one message"),
        ({"preferred_output": [{"role": "user", "content": "x"}]}, "preferred_output[0].role", "is the user's"),
        (
            {"non_preferred_output": [{"role": "assistant", "content": " "}]},
            "non_preferred_output[0].content",
            "is empty",
        ),
        ({"non_preferred_output": [{"role": "assistant", "content": "good"}]}, "non_preferred_output", "is the same"),
    ],
)
def test_what_is_wrong_with_a_preference_is_named(changes, field, words):
    lines = b"\n".join(json.dumps(line).encode() for line in (preference(), preference(**changes)))
    (problem,) = check_training([lines], 2**20).problems
    assert (problem.line, problem.field) == (2, field)
    assert words in problem.reason


ASKED = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    "line",
    [
        {"prompt": ASKED, "chosen": [answer("good")], "rejected": [answer("bad")]},
        {"prompt": ASKED, "chosen": "good", "rejected": "bad"},
        {"chosen": [*ASKED, answer("good")], "rejected": [*ASKED, answer("bad")], "score_chosen": 8.5},
        {"prompt": "q", "chosen": [*ASKED, answer("good")], "rejected": [*ASKED, answer("bad")]},
    ],
)
def test_preferences_as_trl_writes_them_are_openais(line):
    ours = [json.dumps(one).encode() + b"\n" for one in (preference(input={"messages": ASKED}), line)]
    report = check_training(ours, 2**20)
    assert (report.format, report.samples, report.problem_count) == ("preference", 2, 0), report.problems
    wanted, found = read_samples(ours, 2**20)
    assert found == wanted


def test_answers_of_several_turns_follow_the_prompt():
    turns = [answer("a"), {"role": "user", "content": "more"}]
    line = {"prompt": ASKED, "chosen": [*turns, answer("good")], "rejected": [*turns, answer("bad")]}
    (found,) = read_samples([json.dumps(line).encode()], 2**20)
    assert [one.content for one in found.messages] == ["s", "q", "a", "more", "good"]
    assert [one.trained for one in found.messages] == [False, False, False, False, True]


def test_a_preference_of_texts():
    (sample,) = read_samples([json.dumps({"prompt": "q", "chosen": "good", "rejected": "bad"}).encode()], 2**20)
    assert [(one.role, one.content, one.trained) for one in sample.messages] == [
        ("user", "q", False),
        ("assistant", "good", True),
    ]
    assert sample.rejected.content == "bad"


@pytest.mark.parametrize(
    ("line", "field", "words"),
    [
        ({"chosen": "good"}, "rejected", "is missing"),
        ({"chosen": "good", "rejected": "bad"}, "prompt", "is missing"),
        ({"prompt": " ", "chosen": "good", "rejected": "bad"}, "prompt", "is empty"),
        ({"prompt": [], "chosen": "good", "rejected": "bad"}, "prompt", "is a list without messages"),
        ({"prompt": ASKED[:1], "chosen": "good", "rejected": "bad"}, "prompt[0].role", "is the system's"),
        ({"prompt": "q", "chosen": 1, "rejected": "bad"}, "chosen", "is a number, not text"),
        ({"prompt": "q", "chosen": [], "rejected": "bad"}, "chosen", "is a list without messages"),
        ({"prompt": "q", "chosen": ASKED, "rejected": ASKED}, "chosen[1].role", "is the user's"),
        ({"prompt": "q", "chosen": "good", "rejected": "good"}, "rejected", "is the same as chosen"),
        (
            {"chosen": [*ASKED, answer("good")], "rejected": [ASKED[1], answer("bad")]},
            "rejected",
            "continues another conversation than chosen",
        ),
        ({"chosen": [answer("a"), answer("b")], "rejected": [answer("a"), answer("c")]}, "prompt", "is missing"),
        (
            {"prompt": "q", "chosen": [answer("a"), answer("b")], "rejected": [answer("a"), answer("c")]},
            "chosen[0].role",
            "is the assistant's",
        ),
    ],
)
def test_what_is_wrong_with_a_preference_of_trl_is_named(line, field, words):
    (problem,) = check_training([json.dumps(line).encode()], 2**20).problems
    assert problem.field == field
    assert words in problem.reason


def test_a_file_of_preferences_has_no_other_lines():
    chat = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    lines = b"\n".join(json.dumps(line).encode() for line in (preference(), chat))
    (problem,) = check_training([lines], 2**20).problems
    assert (problem.line, problem.field) == (2, "preferred_output")
