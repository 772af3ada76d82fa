"""A hub on this machine: the few routes by which datasets are found and fetched, over real HTTP.

The routes, headers and JSON are those that huggingface_hub asks for and reads; it does so here, unchanged.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Repo:
    """A dataset's repository: revision -> commit -> path -> bytes."""

    name: str
    refs: dict[str, str]
    commits: dict[str, dict[str, bytes]]
    gated: bool = False
    #: Opens a gated one.
    token: str | None = None


@dataclass
class FakeHub:
    """What the server has, what it was asked, and how it misbehaves."""

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    #: Names that lead to another repository.
    moved: dict[str, str] = field(default_factory=dict)
    #: Path and Authorization header of each request.
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    #: Paths whose second half is sent only when ``go_on`` is set; ``half_sent`` tells that the first half is out.
    slow: set[str] = field(default_factory=set)
    half_sent: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)
    #: Paths whose connection breaks off in the middle, once.
    broken: set[str] = field(default_factory=set)
    #: Paths whose bytes are not those of the commit.
    damaged: set[str] = field(default_factory=set)
    #: An answer to every request.
    status: int | None = None

    def add(self, name: str, files: dict[str, bytes], revision: str = "main", **more: Any) -> str:
        """Add a commit; its id."""
        commit = hashlib.sha1(repr([name, revision, sorted(files.items())]).encode()).hexdigest()
        repo = self.repos.setdefault(name, Repo(name, {}, {}))
        repo.refs[revision] = commit
        repo.commits[commit] = files
        for attribute, value in more.items():
            setattr(repo, attribute, value)
        return commit


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        split = urlsplit(self.path)
        path, query = split.path, parse_qs(split.query)
        self.hub.asked.append((path, self.headers.get("authorization")))
        if self.hub.status is not None:
            self._send(self.hub.status, b"{}")
            return
        if path.startswith("/api/datasets/"):
            self._api(path.removeprefix("/api/datasets/"), query)
            return
        name, _, rest = path.removeprefix("/datasets/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        self._resolve(name, unquote(revision), unquote(file))

    def _api(self, rest: str, query: dict[str, list[str]]) -> None:
        name, wanted, revision = rest, "info", "main"
        for word in ("revision", "tree"):
            if f"/{word}/" in rest:
                name, _, revision = rest.partition(f"/{word}/")
                wanted = word
        if name in self.hub.moved:
            self.send_response(307)
            self.send_header("location", self.path.replace(name, self.hub.moved[name]))
            self.send_header("content-length", "0")
            self.end_headers()
            return
        if (repo := self.hub.repos.get(name)) is None:
            self._refuse(401, "RepoNotFound")  # as the Hub answers who has no token
            return
        revision = unquote(revision)
        commit = repo.refs.get(revision, revision)
        if commit not in repo.commits:
            self._refuse(404, "RevisionNotFound")
        elif wanted == "tree":
            self._tree(repo.commits[commit], query)
        else:
            info = {"_id": "1", "id": repo.name, "sha": commit, "private": False, "gated": repo.gated, "tags": []}
            self._send(200, json.dumps({**info, "disabled": False, "downloads": 0, "likes": 0}).encode())

    def _tree(self, files: dict[str, bytes], query: dict[str, list[str]]) -> None:
        """Three entries a page."""
        entries: list[dict[str, Any]] = [
            {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}
            for folder in sorted({path.rpartition("/")[0] for path in files} - {""})
        ]
        for path, content in sorted(files.items()):
            git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            entry = {"type": "file", "path": path, "oid": git, "size": len(content)}
            if path.endswith((".parquet", ".gz")):  # as the Hub keeps binary files
                sha = hashlib.sha256(content).hexdigest()
                entry |= {"lfs": {"oid": sha, "size": len(content), "pointerSize": 131}}
            entries.append(entry)
        begin = int(query.get("cursor", ["0"])[0])
        headers = {}
        if begin + 3 < len(entries):
            base = self.hub.url + urlsplit(self.path).path
            headers["link"] = f'<{base}?recursive=True&cursor={begin + 3}>; rel="next"'
        self._send(200, json.dumps(entries[begin : begin + 3]).encode(), headers)

    def _resolve(self, name: str, revision: str, path: str) -> None:
        repo = self.hub.repos.get(name)
        content = repo and repo.commits.get(repo.refs.get(revision, revision), {}).get(path)
        if repo is None or content is None:
            self._refuse(404, "EntryNotFound")
            return
        if repo.gated and self.headers.get("authorization") != f"Bearer {repo.token}":
            self._refuse(403, "GatedRepo")
            return
        if path in self.hub.damaged:
            content = content[:-1] + bytes([content[-1] ^ 1])
        begin = int(self.headers.get("range", "bytes=0-")[6:].split("-")[0])
        self.send_response(206 if begin else 200)
        self.send_header("content-length", str(len(content) - begin))
        self.end_headers()
        half = begin + (len(content) - begin) // 2
        self.wfile.write(content[begin:half])
        self.wfile.flush()
        if path in self.hub.broken:
            self.hub.broken.discard(path)
            self.close_connection = True
            return
        if path in self.hub.slow:
            self.hub.half_sent.set()
            self.hub.go_on.wait(60)
        self.wfile.write(content[half:])

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b'{"error": "no"}', {"X-Error-Code": code})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"content-type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is killed breaks off: no news."""


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A running hub."""
    hub = FakeHub()
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        hub.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join(20)
