"""An import's child against a hub on this machine: real HTTP, real files, the Hub's own library."""

import gzip
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from core.dataset import check_items, check_training
from core.hub import CONVERTED
from core.hub_order import HubOrder
from tests.hub_server import FakeHub, fake_hub
from tests.waiting import wait_for

ROWS = [{"instruction": f'Add {n}, "please"', "input": "" if n else "1", "output": f"{n}\n日本"} for n in range(5)]
CHATS = [
    {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "a", "weight": None}], "id": n}
    for n in range(4)
]


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub() as running:
        yield running


def parquet(rows: list[dict[str, Any]]) -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def order(out_fd: int, **asked: Any) -> HubOrder:
    defaults: dict[str, Any] = {
        "dataset": "org/data", "config": None, "split": "train", "revision": None, "purpose": "fine-tune",
        "columns": {}, "skip_bad_rows": False, "max_line_bytes": 5_000, "max_file_bytes": 1_000_000, "out_fd": out_fd,
    }  # fmt: skip
    return HubOrder(**(defaults | asked))


def environment(hub: FakeHub, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return kept | {"HF_ENDPOINT": hub.url, "HF_HUB_DOWNLOAD_TIMEOUT": "20"} | more


CHILD = ("-m", "core.hub_child")


def carry_out(
    hub: FakeHub, env: dict[str, str] | None = None, child: Sequence[str] = CHILD, **asked: Any
) -> tuple[dict[str, Any], bytes]:
    """The child's last line, and the file that it wrote."""
    with tempfile.TemporaryFile() as out:
        done = subprocess.run(
            [sys.executable, *child], input=order(out.fileno(), **asked).model_dump_json().encode(),
            capture_output=True, env=environment(hub, **(env or {})), pass_fds=(out.fileno(),),
            check=False, timeout=100,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr.decode()
        out.seek(0)
        return json.loads(done.stdout.splitlines()[-1]), out.read()


def records(content: bytes) -> list[Any]:
    return [json.loads(line) for line in content.splitlines()]


def test_parquet_files_become_lines_with_their_commit(hub: FakeHub):
    hub.add("org/data", {"data/train-00000-of-00001.parquet": parquet(ROWS[:1])})
    header = b"---\nconfigs:\n- config_name: main\n  data_files:\n  - split: train\n    path: main/train-*\n---\n# Hi\n"
    files = {
        "README.md": header, "main/train-0.parquet": parquet(ROWS[:3]), "main/train-1.parquet": parquet(ROWS[3:]),
        "main/test-0.parquet": parquet(ROWS[:1]), "extra/more.csv": b"a,b\n",
    }  # fmt: skip
    commit = hub.add("org/data", files)
    told, content = carry_out(hub)
    assert records(content) == ROWS
    assert told["done"]["source"] == {
        "type": "huggingface", "dataset": "org/data", "config": "main", "split": "train", "revision": None,
        "commit": commit, "files": 2, "columns": None, "skipped_rows": 0,
    }  # fmt: skip
    assert told["done"]["report"] == asdict(check_training([content], 5_000)), "as of an upload of the same bytes"
    fetched = [path for path, _ in hub.asked if "/resolve/" in path]
    assert fetched == [f"/datasets/org/data/resolve/{commit}/{path}" for path in list(files)[:3]]
    assert {token for _, token in hub.asked} == {None}


def test_columns_that_hone_does_not_know_are_left_out_and_never_read(hub: FakeHub):
    rows = [{**row, "picture": b"\xff\x00", "when": None} for row in CHATS]
    hub.add("org/data", {"train.parquet": parquet(rows)})
    _, content = carry_out(hub)
    turns = [{"role": "user", "content": "q0"}, {"role": "assistant", "content": "a"}]
    assert records(content)[0] == {"messages": turns}
    assert len(records(content)) == 4


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.jsonl", jsonl(ROWS)),
        ("train.json", json.dumps(ROWS, indent=2).encode()),
        ("train.jsonl.gz", gzip.compress(jsonl(ROWS[:2])) + gzip.compress(jsonl(ROWS[2:]))),
        ("train.parquet", parquet(ROWS)),
    ],
)
def test_each_format_gives_the_same_rows(hub: FakeHub, name: str, content: bytes):
    hub.add("org/data", {name: content})
    _, made = carry_out(hub)
    assert records(made) == ROWS


@pytest.mark.parametrize(("name", "delimiter"), [("train.csv", ","), ("train.tsv", "\t"), ("train.csv.gz", ",")])
def test_tables_whose_columns_have_other_names(hub: FakeHub, name: str, delimiter: str):
    text = (
        f"question{delimiter}answer{delimiter}level\nWhy?{delimiter}So.{delimiter}1\nHow?{delimiter}Thus.{delimiter}2\n"
    )
    hub.add("org/data", {name: gzip.compress(text.encode()) if name.endswith(".gz") else text.encode()})
    told, _ = carry_out(hub)
    assert told["error"]["code"] == "no_known_columns"
    assert "question, answer, level" in told["error"]["message"]
    columns = {"prompt": "question", "completion": "answer"}
    told, content = carry_out(hub, columns=columns)
    assert records(content) == [{"prompt": "Why?", "completion": "So."}, {"prompt": "How?", "completion": "Thus."}]
    assert told["done"]["source"]["columns"] == columns
    told, _ = carry_out(hub, columns={"prompt": "question"})
    assert told["error"]["code"] == "no_known_columns", "an answer is missing"
    told, _ = carry_out(hub, columns={"prompt": "question", "completion": "reply"})
    assert (told["error"]["code"], told["error"]["param"]) == ("column_not_found", "columns")
    assert "'reply', but: question, answer, level" in told["error"]["message"]


def test_optional_fields_of_later_rows_are_kept(hub: FakeHub):
    rows = [{"instruction": "a", "output": "b"}, {"instruction": "a", "output": "b", "input": "c"}]
    hub.add("org/data", {"train.jsonl": jsonl(rows)})
    assert records(carry_out(hub)[1]) == rows


def test_preferences_are_taken_as_trl_writes_them(hub: FakeHub):
    turns = {name: [{"role": "user", "content": "q"}, {"role": "assistant", "content": name}] for name in "ab"}
    row = {"prompt": "q", "prompt_id": "1", "chosen": turns["a"], "rejected": turns["b"], "score_chosen": 8.0}
    wanted = {"prompt": "q", "chosen": turns["a"], "rejected": turns["b"]}
    hub.add("org/data", {"train.parquet": parquet([row] * 3)})
    told, content = carry_out(hub)
    assert records(content) == [wanted] * 3
    assert told["done"]["report"]["format"] == "preference"
    hub.add("org/data", {"train.parquet": parquet([{**row, "messages": turns["a"]}])})
    assert records(carry_out(hub)[1]) == [{"messages": turns["a"]}]
    _, content = carry_out(hub, columns={"chosen": "chosen", "rejected": "rejected"})
    assert records(content) == [{"chosen": turns["a"], "rejected": turns["b"]}]


def test_fields_that_are_not_named_keep_their_columns(hub: FakeHub):
    rows = [{"instruction": "a", "input": "not this", "response": "b", "output": "c", "messages": "m"}]
    hub.add("org/data", {"train.jsonl": jsonl(rows)})
    _, content = carry_out(hub, columns={"output": "response"})
    assert records(content) == [{"instruction": "a", "output": "b"}]
    _, content = carry_out(hub, columns={"output": "response", "input": "output"})
    assert records(content) == [{"instruction": "a", "output": "b", "input": "c"}]


def test_items_of_an_evaluation_are_whole_rows(hub: FakeHub):
    rows = [{"question": "q", "answer": 1, "more": [1]}, {"question": "r", "extra": "e"}]
    hub.add("org/data", {"test.jsonl": jsonl(rows)})
    told, content = carry_out(hub, split="test", purpose="evals")
    assert records(content) == [{"item": row} for row in rows]
    assert told["done"]["report"] == asdict(check_items([content], 5_000))
    _, content = carry_out(hub, split="test", purpose="evals", columns={"prompt": "question"})
    assert records(content) == [{"item": {"prompt": "q"}}, {"item": {"prompt": "r"}}]
    hub.add("org/data", {"test.jsonl": jsonl([{"item": {"a": 1}, "id": 1}])})
    assert records(carry_out(hub, split="test", purpose="evals")[1]) == [{"item": {"a": 1}}]


def test_a_row_that_can_not_be_used_is_named_and_may_be_left_out(hub: FakeHub):
    rows = [ROWS[0], {**ROWS[1], "output": ""}, ROWS[2], {**ROWS[3], "output": "x" * 6000}]
    hub.add("org/data", {"train-0.parquet": parquet(rows[:1]), "train-1.parquet": parquet(rows[1:])})
    told, _ = carry_out(hub)
    error = told["error"]
    assert (error["code"], error["param"]) == ("invalid_file_format", "dataset")
    assert "2 rows of 4" in error["message"]
    assert "row 2, field 'output': is empty" in error["message"]
    kinds = {entry["kind"]: entry["count"] for entry in error["details"]["report"]["problems"]["kinds"]}
    assert kinds == {"empty_field": 1, "too_long": 1}
    told, content = carry_out(hub, skip_bad_rows=True)
    assert records(content) == [ROWS[0], ROWS[2]]
    assert told["done"]["source"]["skipped_rows"] == 2
    hub.add("org/data", {"train.jsonl": jsonl([{**row, "output": ""} for row in ROWS])})
    told, _ = carry_out(hub, skip_bad_rows=True)
    assert "5 rows of 5" in told["error"]["message"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.parquet", parquet(ROWS)[:-20] + b"PAR1"),
        ("train.json", json.dumps(ROWS).encode()[:-9]),
        ("train.csv", b'instruction,output\na,b\n"c,d\n'),
        ("train.jsonl.gz", gzip.compress(jsonl(ROWS))[:-12]),
        ("train.jsonl.gz", b"no gzip"),
        ("train.jsonl.gz", gzip.compress(b"{" + b" " * 70 * 2**20)),
    ],
)
def test_a_damaged_file_is_never_cut_short_in_silence(hub: FakeHub, name: str, content: bytes):
    hub.add("org/data", {name: content})
    told, _ = carry_out(hub, skip_bad_rows=True)
    assert told["error"]["code"] in ("invalid_file_format", "file_too_large"), told


def test_a_dataset_without_files_to_read_comes_from_the_hubs_conversion(hub: FakeHub):
    hub.add("org/data", {"data.py": b"raise SystemExit", "data.zip": b"PK", "notes.csv": b"a\nb\n"})
    told, _ = carry_out(hub)
    assert told["error"]["code"] == "no_known_columns", "there is no conversion"
    commit = hub.add("org/data", {"de/train/0000.parquet": parquet(ROWS)}, revision=CONVERTED)
    told, content = carry_out(hub)
    assert records(content) == ROWS
    source = told["done"]["source"]
    assert (source["config"], source["commit"], source["revision"]) == ("de", commit, CONVERTED)
    header = b"---\nconfigs:\n- {config_name: de, data_files: '*.zip'}\n- {config_name: us, data_files: '*.csv'}\n---\n"
    hub.add("org/data", {"README.md": header, "data.zip": b"PK", "notes.csv": b"prompt,completion\na,b\n"})
    assert carry_out(hub, config="de")[0]["done"]["source"]["commit"] == commit
    assert records(carry_out(hub, config="us")[1]) == [{"prompt": "a", "completion": "b"}]
    for revision in (CONVERTED, commit):
        told, content = carry_out(hub, revision=revision, config="de")
        assert records(content) == ROWS
        assert told["done"]["source"] == {**source, "revision": revision}, "so its commit brings the same"


def test_a_revision_is_pinned_to_its_commit(hub: FakeHub):
    old = hub.add("org/data", {"train.jsonl": jsonl(ROWS[:2])}, revision="v1.0")
    hub.add("org/data", {"train.jsonl": jsonl(ROWS)})
    for revision in ("v1.0", old):
        told, content = carry_out(hub, revision=revision)
        assert records(content) == ROWS[:2]
        assert told["done"]["source"]["commit"] == old
        assert told["done"]["source"]["revision"] == revision
    told, _ = carry_out(hub, revision="v9")
    assert (told["error"]["code"], told["error"]["param"]) == ("revision_not_found", "revision")


def test_only_the_operators_token_is_sent_and_only_it_opens(hub: FakeHub, tmp_path):
    hub.add("org/data", {"README.md": b"# Hi", "train.jsonl": jsonl(ROWS)}, gated=True, token="hf_operators")
    (tmp_path / "token").write_text("hf_somebodys")
    told, _ = carry_out(hub, env={"HF_HOME": str(tmp_path)})
    assert told["error"]["code"] == "dataset_gated"
    assert f"{hub.url}/datasets/org/data" in told["error"]["message"]
    assert {token for _, token in hub.asked} == {None}
    told, content = carry_out(hub, env={"HF_HOME": str(tmp_path), "HF_TOKEN": "hf_operators"})
    assert records(content) == ROWS
    assert "hf_operators" not in json.dumps(told)


def test_what_is_wrong_is_told_by_its_reason(hub: FakeHub):
    hub.add("org/data", {"train.jsonl": jsonl(ROWS), "test.jsonl": jsonl(ROWS)})
    hub.moved["old/data"] = "org/data"
    for asked, code, words in [
        ({"dataset": "org/none"}, "dataset_not_found", "no dataset 'org/none'"),
        ({"dataset": "old/data"}, "dataset_moved", "called 'org/data'"),
        ({"split": "validation"}, "split_not_found", "test, train"),
        ({"config": "fr"}, "config_not_found", "default"),
        ({"max_file_bytes": 300}, "file_too_large", "bytes, more than 300"),
        ({"dataset": "a--b..git"}, "dataset_not_found", "no name"),
    ]:
        told, content = carry_out(hub, **asked)
        assert told["error"]["code"] == code, told
        assert words in told["error"]["message"]
        assert content == b""
    hub.status = 503
    assert carry_out(hub)[0]["error"]["code"] == "hub_error"
    hub.status = 200
    assert carry_out(hub)[0]["error"]["code"] == "hub_error", "somebody else answers there"
    hub.url = "http://127.0.0.1:1"
    told, _ = carry_out(hub)
    assert told["error"]["code"] == "hub_unreachable"
    assert "http://127.0.0.1:1" in told["error"]["message"]
    assert carry_out(hub, env={"HF_HUB_OFFLINE": "1"})[0]["error"]["code"] == "hub_unreachable"


def test_words_of_a_dataset_can_be_stored(hub: FakeHub):
    hub.add("org/data", {"train.jsonl": b'{"a\\u0000b": 1, "\\ud800": 2, "' + b"x" * 9000 + b'": 3}\n'})
    told, _ = carry_out(hub, max_line_bytes=20_000)
    message = told["error"]["message"]
    assert told["error"]["code"] == "no_known_columns"
    assert "a b,  , xxx" in message
    assert len(message) <= 5_000


def test_rows_that_unpack_to_more_than_the_limit_are_refused(hub: FakeHub):
    rows = [{"prompt": "p" * 100, "completion": "c" * 100}] * 1000
    hub.add("org/data", {"train.parquet": parquet(rows)})
    told, content = carry_out(hub, max_file_bytes=100_000)
    assert told["error"]["code"] == "file_too_large"
    assert len(content) <= 100_000


def test_a_connection_that_breaks_is_taken_up_and_a_damaged_file_refused(hub: FakeHub):
    content = jsonl(ROWS * 2000)
    hub.add("org/data", {"train.jsonl": content})
    hub.broken.add("train.jsonl")
    assert records(carry_out(hub)[1]) == ROWS * 2000
    assert sum("/resolve/" in path for path, _ in hub.asked) == 2
    hub.damaged.add("train.jsonl")
    assert carry_out(hub)[0]["error"]["code"] == "hub_damaged"


def test_a_hub_that_says_nothing_is_not_waited_for_forever(hub: FakeHub):
    hub.add("org/data", {"train.jsonl": jsonl(ROWS)})
    hub.slow.add("train.jsonl")
    impatient = "import sys, core.hub_child as child; child._STALL_SECONDS = 1.5; sys.exit(child.main())"
    told, _ = carry_out(hub, child=("-c", impatient))
    assert told["error"]["code"] == "hub_unreachable"
    assert "sent nothing" in told["error"]["message"]


#: Starts the child as the API does, says its number, and waits.
PARENT = """
import subprocess, sys
with open(sys.argv[1], "wb") as out:
    order = sys.argv[2].replace('"out_fd":0', f'"out_fd":{out.fileno()}')
    child = subprocess.Popen([sys.executable, "-m", "core.hub_child"], stdin=subprocess.PIPE, pass_fds=[out.fileno()])
    child.stdin.write(order.encode())
    child.stdin.close()
    print(child.pid, file=sys.stderr, flush=True)
    child.wait()
"""


def test_progress_is_told_and_a_child_whose_parent_is_gone_ends_without_a_trace(hub: FakeHub, tmp_path):
    content = jsonl(ROWS * 200)
    hub.add("org/data", {"train.jsonl": content})
    hub.slow.add("train.jsonl")
    spools = tmp_path / "spools"
    spools.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "out"), order(0).model_dump_json()],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(hub, TMPDIR=str(spools)),
    ) as parent:  # fmt: skip
        assert parent.stdout is not None
        assert parent.stderr is not None
        child = Path(f"/proc/{int(parent.stderr.readline())}/stat")
        assert hub.half_sent.wait(60)
        told = next(one for one in map(json.loads, parent.stdout) if one["total_bytes"])
        assert told["total_bytes"] == len(content)
        parent.kill()
        wait_for(lambda: is_over(child), 30)
    assert list(spools.iterdir()) == []


def is_over(stat: Path) -> bool:
    """Whether a process has ended, be it that nobody has asked for its exit status yet."""
    try:
        return stat.read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
