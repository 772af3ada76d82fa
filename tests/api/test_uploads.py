import socket
import time
from pathlib import Path
from urllib.parse import urlparse

import pytest
from sqlalchemy import select

from api.uploads import clean_filename
from models.database import Database
from models.tables import File


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("train.jsonl", "train.jsonl"),
        ("/etc/passwd", "passwd"),
        ("../../x.jsonl", "x.jsonl"),
        ("C:\\data\\x.jsonl", "x.jsonl"),
        ("a\r\nSet-Cookie: b\0.csv", "aSet-Cookie: b.csv"),
        ("\u202etxt.exe", "txt.exe"),
        ("Ω.jsonl", "Ω.jsonl"),
        ("..", "upload"),
        ("", "upload"),
        ("\0", "upload"),
    ],
)
def test_a_filename_is_only_its_last_part_without_control_characters(given: str, shown: str):
    assert clean_filename(given) == shown


def test_a_long_filename_is_cut_at_a_whole_character():
    cut = clean_filename("Ω" * 1000)
    assert len(cut.encode()) == 512
    assert set(cut) == {"Ω"}


def test_a_client_that_leaves_in_the_middle_leaves_nothing(base_url: str, key: str, database: Database, tmp_path: Path):
    address = urlparse(base_url)
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Length: 100000\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
        '--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
        '--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    )
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(head.encode() + b'{"prompt": "a", "completion": "b"}\n' * 100)
    # The server answers others, and what it had received is gone.
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        with socket.create_connection((address.hostname, address.port)) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            if connection.recv(100).startswith(b"HTTP/1.1 200"):
                break
    with database.read() as session:
        assert session.scalars(select(File)).all() == []
    assert [path for path in (tmp_path / "storage").rglob("*") if path.is_file()] == []
