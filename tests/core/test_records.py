"""Records out of JSON lines, JSON arrays, CSV and Parquet: the same samples, each problem at its line."""

import io
import json

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.dataset import check_training, read_samples
from core.records import LineError, open_records

LIMIT = 2000
ROWS = [
    {"instruction": 'Add,\n"them"', "input": "1; 2", "output": "3"},
    {"instruction": "Grüße", "output": "def f():\n\treturn '日本'"},
]
CHATS = [{"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "a"}]} for n in range(3)]


def as_csv(rows, delimiter=",") -> bytes:
    import csv

    out = io.StringIO()
    writer = csv.DictWriter(out, ["instruction", "input", "output"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def as_parquet(rows) -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


def as_lines(rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def found(raw: bytes, size: int = 7, limit: int = LIMIT):
    told, records = open_records([raw[at : at + size] for at in range(0, len(raw), size)], limit)
    return told, [(line, one.problem[1] if isinstance(one, LineError) else one) for line, one in records]


@pytest.mark.parametrize(
    ("raw", "format"),
    [
        (as_lines(ROWS), "jsonl"),
        (json.dumps(ROWS).encode(), "json"),
        (json.dumps(ROWS, indent=2, ensure_ascii=False).encode(), "json"),
        (b"\xef\xbb\xbf" + json.dumps(ROWS).encode(), "json"),
        (as_csv(ROWS), "csv"),
        (b"\xef\xbb\xbf" + as_csv(ROWS), "csv"),
        (as_csv(ROWS, ";"), "csv"),
        (as_csv(ROWS, "\t"), "csv"),
        (as_parquet(ROWS), "parquet"),
    ],
)
def test_every_format_gives_the_same_samples(raw, format):
    want = list(read_samples([as_lines(ROWS)], LIMIT))
    assert list(read_samples([raw], LIMIT)) == want
    report = check_training([raw], LIMIT)
    assert (report.file_format, report.format, report.samples, report.problem_count) == (format, "instruction", 2, 0)


@pytest.mark.parametrize("raw", [as_lines(CHATS), json.dumps(CHATS).encode(), as_parquet(CHATS)])
def test_chats_come_in_every_format_that_nests(raw):
    assert list(read_samples([raw], LIMIT)) == list(read_samples([as_lines(CHATS)], LIMIT))


def test_a_csv_holds_messages_as_json():
    cell = json.dumps(CHATS[0]["messages"]).replace('"', '""')
    assert list(read_samples([f'messages\n"{cell}"\n'.encode()], LIMIT)) == list(
        read_samples([as_lines(CHATS[:1])], LIMIT)
    )
    _, records = found(b'messages\n"[{"\n')
    assert records[0][0] == 2
    assert "is not JSON" in records[0][1]


def test_a_parquet_files_nulls_are_fields_that_are_not_there():
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": None}]
    problem = check_training([as_parquet(rows)], LIMIT).problems[0]
    assert (problem.line, problem.field, problem.kind) == (2, "completion", "missing_field")


@pytest.mark.parametrize(
    ("raw", "line", "reason"),
    [
        (b'[\n{"a": 1},\n{"a": }\n]', 3, "is not JSON"),
        (b'[\n{"a": 1}\n{"a": 2}\n]', 3, "comma"),
        (b'[\n{"a": 1},\n', 3, "is not JSON"),
        (b'[{"a": 1}]\n\nx', 3, "follows the array"),
        (b"[\n\n3]", 3, "not an object"),
        (b'[\n{"a": NaN}]', 2, "NaN"),
        (b'[\n{"a": "' + b"x" * 3000 + b'"}]', 2, "longer than 2,000"),
        (b'[\n{"a": "' + b"x" * 30000, 2, "longer than 2,000"),
        (b'[\n{"a": "\xff"}]', 2, "not UTF-8"),
        (b"[" * 5000, 1, "nested too deeply"),
        (b"prompt,completion\na,b\nc,d,e\n", 3, "3 cells"),
        (b'prompt,completion\na,b\n"c,d\ne,f\n', 3, "not CSV"),
        (b'prompt,completion\n"a\nb",c\nd,\xff\n', 4, "not UTF-8"),
        (b"prompt,completion\n" + b"x" * 3000 + b",y\n", 2, "longer than 2,000"),
        (b'prompt,completion\na,"' + b"x\n" * 3000, 2, "longer than 2,000"),
        (b"PAR1 and nothing more", 1, "not readable Parquet"),
        (as_parquet(ROWS)[:-30], 1, "not readable Parquet"),
    ],
)
def test_what_is_wrong_is_told_at_its_line(raw, line, reason):
    _, records = found(raw, size=997)
    assert records[-1][0] == line, records[-1]
    assert reason in records[-1][1]


def test_lines_of_a_csv_are_those_of_the_text():
    raw = b'\n\nprompt,completion\n"a\nb",c\n\nd,e\n'
    assert found(raw) == ("csv", [(4, {"prompt": "a\nb", "completion": "c"}), (7, {"prompt": "d", "completion": "e"})])


def test_a_row_of_a_parquet_file_that_is_too_long_is_told():
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "x" * 3000, "completion": "b"}]
    assert "longer than 2,000" in found(as_parquet(rows))[1][1][1]


def test_a_column_that_is_no_text_is_refused_by_name():
    import datetime

    _, records = found(as_parquet([{"prompt": datetime.date(2026, 1, 1), "completion": "b"}]))
    assert "date" in records[0][1]


@settings(max_examples=40)
@given(
    st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=20) | st.integers() | st.none(), max_size=3)),
    st.integers(1, 9),
    st.sampled_from([None, 1]),
)
def test_an_array_is_read_however_its_stream_is_cut(rows, size, indent):
    raw = json.dumps(rows, indent=indent, ensure_ascii=False).encode("utf-8", "replace")
    want = json.loads(raw)
    told, records = found(raw, size)
    assert told == "json"
    assert [record for _, record in records] == want


def test_an_array_without_end_is_held_in_bounded_memory():
    import tracemalloc

    chunks = (b'[{"a": "' + b"x" * 100_000 if n == 0 else b"x" * 100_000 for n in range(3000))
    tracemalloc.start()
    _, records = open_records(chunks, 50_000)
    assert [line for line, _ in records] == [1]
    assert tracemalloc.get_traced_memory()[1] < 3_000_000
    tracemalloc.stop()


@settings(max_examples=60)
@given(st.sampled_from([b"[", b"prompt,completion\n", b"[{", b"messages\n", b"PAR0"]), st.binary(max_size=200))
def test_any_bytes_behind_a_formats_beginning_give_a_report(head, rest):
    check_training([head + rest], LIMIT)
