"""Files that want to hurt, over real HTTP: each gets a clear answer, none a 500, and the service goes on."""

import gzip
import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pyarrow as pa
import pyarrow.parquet
import pytest

from api.main import create_app
from core.settings import Settings
from models.database import Database
from tests.api.conftest import NO_BROKER, served
from tests.api.driving import error_of
from tests.conftest import make_key
from tests.waiting import wait_for

GOOD = b'{"prompt": "a", "completion": "b"}\n'


def nested(depth: int) -> bytes:
    return b'{"prompt": ' + b"[" * depth + b"]" * depth + b', "completion": "b"}'


def many_keys(count: int) -> bytes:
    return b'{"prompt": "a", "completion": "b", ' + b", ".join(b'"k%d": 1' % n for n in range(count)) + b"}"


def parquet(rows: list[dict], **options: object) -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), out, **options)
    return out.getvalue()


def bomb() -> bytes:
    """Some kB that unpack to 800 MB: one value, a million times."""
    table = pa.table({"prompt": pa.array(["x" * 800] * 1_000_000), "completion": pa.array(["b"] * 1_000_000)})
    out = io.BytesIO()
    pyarrow.parquet.write_table(table, out, compression="zstd", use_dictionary=True)
    return out.getvalue()


#: Name: the file's bytes (or what makes them), and words of the refusal; None where the file is good.
FILES: dict[str, tuple[bytes | Callable[[], bytes], str | None]] = {
    "empty": (b"", "has no samples"),
    "blank lines": (b"\n \r\n\t\n", "has no samples"),
    "a byte order mark alone": (b"\xef\xbb\xbf", "is not JSON"),
    "a byte order mark and a sample": (b"\xef\xbb\xbf" + GOOD, None),
    "windows' line ends": (GOOD.replace(b"\n", b"\r\n") * 3, None),
    "old macs' line ends": (GOOD.replace(b"\n", b"\r") * 3, "line 1: is not JSON"),
    "no line end": (GOOD.rstrip(), None),
    "utf-16": (GOOD.decode().encode("utf-16"), "line 1: is not UTF-8"),
    "utf-32": (GOOD.decode().encode("utf-32"), "line 1: is not UTF-8"),
    "latin-1": (GOOD + b'{"prompt": "caf\xe9", "completion": "b"}', "line 2: is not UTF-8"),
    "overlong utf-8": (b'{"prompt": "\xc0\xaf", "completion": "b"}', "line 1: is not UTF-8"),
    "a surrogate in utf-8": (b'{"prompt": "\xed\xa0\x80", "completion": "b"}', "line 1: is not UTF-8"),
    "half an escaped surrogate": (b'{"prompt": "\\ud83d", "completion": "b"}', "line 1, field 'prompt'"),
    "a surrogate as a key": (b'{"\\ud83d": 1}', "known formats (keys: \\ud83d)"),
    "nul in a text": (b'{"prompt": "a\\u0000", "completion": "b"}', "NUL"),
    "nul as a byte": (b'{"prompt": "a\0", "completion": "b"}', "line 1: is not JSON"),
    "nothing but nul": (b"\0" * 100_000, "line 1: is not JSON"),
    "null for a text": (b'{"prompt": null, "completion": "b"}', "is null"),
    "null for a line": (GOOD + b"null\n", "line 2: is a JSON NoneType"),
    "a number for a text": (b'{"prompt": 3, "completion": "b"}', "is a number"),
    "a number of 10,000 digits": (b'{"prompt": ' + b"9" * 10_000 + b', "completion": "b"}', "line 1"),
    "a number beyond all": (b'{"prompt": 1e999999, "completion": "b"}', "is a number"),
    "not a number": (b'{"prompt": NaN, "completion": "b"}', "NaN"),
    "a list for a text": (b'{"prompt": ["a"], "completion": "b"}', "is a list"),
    "nested 10,000 deep": (nested(10_000), "nested too deeply"),
    "nested 500,000 deep": (nested(500_000), "nested too deeply"),
    "an array nested 200,000 deep": (b"[" * 200_000, "nested too deeply"),
    "a line of 30 MB": (b'{"prompt": "' + b"x" * 30_000_000 + b'", "completion": "b"}', "longer than"),
    "30 MB without a line end": (b"x" * 30_000_000, "longer than"),
    "a million empty lines": (b"\n" * 1_000_000 + GOOD, None),
    "10 million keys": (lambda: many_keys(1000)[:-1] + b', "k": 1' * 10_000_000 + b"}", "longer than"),
    "60,000 keys": (many_keys(60_000), None),
    "the same key twice": (b'{"prompt": "a", "prompt": 3, "completion": "b"}', "is a number"),
    "mixed formats": (GOOD + b'{"instruction": "a", "output": "b"}\n', "line 2, field 'prompt'"),
    "an array that stops": (b"[" + GOOD.strip() + b",", "is not JSON"),
    "two arrays": (b"[" + GOOD.strip() + b"][]", "follows the array"),
    "an array of 20 MB in one element": (b'[{"prompt": "' + b"x" * 20_000_000 + b'"}]', "longer than"),
    "gzip": (gzip.compress(GOOD * 100), "is not UTF-8"),
    "a picture": (b"\x89PNG\r\n\x1a\n\0\0", "line 1"),
    "html": (b"<html><body>403</body></html>", "line 1: is not JSON"),
    "python": (b"{'prompt': 'a', 'completion': 'b'}", "line 1: is not JSON"),
    "csv with open quotes": (b'prompt,completion\n"a,b\n' + b"c,d\n" * 400_000, "line 2: is longer than"),
    "csv with nul": (b"prompt,completion\na\0,b\n", "NUL"),
    "csv with too many cells": (b"prompt,completion\na,b,c\n", "3 cells"),
    "csv with 200,000 columns": (b"prompt,completion," + b",".join(b"c" for _ in range(200_000)) + b"\na,b\n", None),
    "csv without rows": (b"prompt,completion\n", "has no samples"),
    "parquet cut off": (parquet([{"prompt": "a", "completion": "b"}])[:-20], "not readable Parquet"),
    "parquet in name only": (b"PAR1" + b"\xff" * 1000 + b"PAR1", "not readable Parquet"),
    "parquet of bytes": (parquet([{"prompt": b"\xff\xfe", "completion": b"b"}]), "holds bytes"),
    "parquet that unpacks to 800 MB": (bomb, "50 times its size"),
}


@pytest.fixture(scope="module")
def service(tmp_path_factory, sqlite_template) -> Iterator[httpx2.Client]:
    """One API behind a socket for all of them."""
    folder = tmp_path_factory.mktemp("hostile")
    catalogue = folder / "catalogue.toml"
    catalogue.write_text("")
    url = f"sqlite:///{shutil.copy(sqlite_template, folder / 'hone.db')}"
    database = Database(url)
    key = make_key(database)
    database.dispose()
    settings = Settings(
        home=folder, database_url=url, storage_url=(folder / "storage").as_uri(), redis_url=NO_BROKER,
        catalogue=catalogue, max_file_bytes=300 * 2**20,
    )  # fmt: skip
    headers = {"Authorization": f"Bearer {key}"}
    with (
        served(create_app(settings)) as address,
        httpx2.Client(base_url=address, headers=headers, timeout=120) as client,
    ):
        yield client


def test_there_are_forty():
    assert len(FILES) >= 40


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_gets_a_clear_answer_and_the_service_goes_on(service: httpx2.Client, name: str):
    content, words = FILES[name]
    raw = content if isinstance(content, bytes) else content()
    answer = service.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": (f"{name}.jsonl", raw)})
    if words is None:
        assert answer.status_code == 200, answer.text[:500]
        report = answer.json()["hone"]["report"]
        assert report["problem_count"] == 0
        the_preflight_is_a_report(service, answer.json()["id"], report["samples"])
    else:
        assert answer.status_code == 400
        told = error_of(answer)
        assert words in told["message"], told["message"]
        assert (told["param"], told["type"]) == ("file", "invalid_request_error")
        assert len(told["message"]) < 1000
        problems = told["hone"]["report"]["problems"]
        assert all(problem["reason"] and problem["fix"] for problem in problems["first"])
        json.dumps(told, ensure_ascii=False).encode("utf-8")
    assert service.get("/healthz").status_code == 200
    assert service.get("/v1/files?limit=1").status_code == 200


def the_preflight_is_a_report(service: httpx2.Client, file_id: str, samples: int) -> None:
    last: list[httpx2.Response] = []

    def ended() -> bool:
        last[:] = [service.get(f"/v1/files/{file_id}/preflight")]
        return last[0].status_code != 202

    wait_for(ended, 120)
    assert last[0].status_code == 200
    assert last[0].json()["status"] == "completed"
    assert last[0].json()["report"]["samples"] == samples


def test_nothing_of_a_refused_file_stays(service: httpx2.Client, tmp_path: Path):
    kept = service.get("/v1/files?limit=100").json()["data"]
    assert all(file["hone"]["report"]["problem_count"] == 0 for file in kept)
