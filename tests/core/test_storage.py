"""Storage: an object is whole or absent."""

import hashlib
import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import pytest
from obstore.store import S3Store

from core.storage import CHUNK, Storage


def test_what_was_stored_comes_back_with_its_size_and_hash(storage):
    parts = [b"a" * CHUNK, b"b" * 100, b""]
    stored = storage.put("one/two", iter(parts))
    assert (stored.key, stored.bytes) == ("one/two", CHUNK + 100)
    assert stored.sha256 == hashlib.sha256(b"".join(parts)).hexdigest()
    assert b"".join(storage.get("one/two")) == b"".join(parts)


def test_a_range_is_half_open_and_ends_with_the_object(storage):
    storage.put("x", [b"0123456789"])
    assert b"".join(storage.get("x", 2, 5)) == b"234"
    assert b"".join(storage.get("x", 8, 100)) == b"89"


def test_a_stream_that_breaks_off_leaves_nothing(storage, tmp_path):
    def broken():
        yield b"x" * 100
        raise ConnectionError

    with pytest.raises(ConnectionError):
        storage.put("half", broken())
    assert [path for path in (tmp_path / "storage").rglob("*") if path.is_file()] == []


def test_a_missing_object_is_known_before_the_first_byte(storage):
    with pytest.raises(FileNotFoundError):
        storage.get("nothing")


def test_deleting_twice_is_no_error(storage):
    storage.put("x", [b"1"])
    storage.delete("x")
    storage.delete("x")
    with pytest.raises(FileNotFoundError):
        storage.get("x")


def test_files_go_in_and_out(storage, tmp_path):
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(bytes(range(256)) * 9000)
    storage.put_file("f", source)
    storage.get_file("f", target)
    assert source.read_bytes() == target.read_bytes()


def test_keys_are_listed_by_folder(storage):
    for key in ("jobs/a/1-1/x", "jobs/a/2-2/y", "jobs/ab/1-1/x", "files/a"):
        storage.put(key, [b"1"])
    assert sorted(storage.list("jobs/a")) == ["jobs/a/1-1/x", "jobs/a/2-2/y"]
    assert list(storage.list("jobs/none")) == []


def test_a_folder_with_spaces_and_percent_signs_is_found(tmp_path: Path):
    folder = tmp_path / "a b%20c"
    Storage(folder.as_uri()).put("x", [b"1"])
    assert (folder / "x").read_bytes() == b"1"


_CONTENTS = (
    "<Contents><Key>{}1-1/x</Key><Size>1</Size><LastModified>2026-01-01T00:00:00Z</LastModified>"
    '<ETag>"1"</ETag></Contents>'
)


class _Bucket(BaseHTTPRequestHandler):
    """As much of S3 as is asked for here: no object is found, one is listed."""

    def do_HEAD(self) -> None:
        self.send_response(404)
        self.end_headers()

    def do_GET(self) -> None:
        """A listing whose one object lies below the prefix that was asked for."""
        prefix = parse_qs(urlparse(self.path).query)["prefix"][0]
        body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{_CONTENTS.format(prefix)}</ListBucketResult>"
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    """A bucket behind plain HTTP, which the environment alone allows, as with MinIO."""
    with HTTPServer(("127.0.0.1", 0), _Bucket) as server:
        named = {"REGION": "r", "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "ALLOW_HTTP": "true"}
        for name, value in {**named, "ENDPOINT": f"http://127.0.0.1:{server.server_port}"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Storage("s3://bucket/prefix")
        server.shutdown()


def test_an_endpoint_of_the_environment_is_asked(s3: Storage):
    with pytest.raises(FileNotFoundError):
        s3.get("x")


def test_keys_of_a_bucket_are_without_its_urls_prefix(s3: Storage):
    assert list(s3.list("jobs/a")) == ["jobs/a/1-1/x"]


def test_an_endpoint_that_hangs_is_not_tried_for_minutes(s3: Storage):
    store = s3._store
    assert isinstance(store, S3Store)
    assert store.retry_config is not None
    assert store.retry_config["retry_timeout"] < timedelta(seconds=30), "one request takes up to 30 s"
