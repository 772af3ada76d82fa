"""A server that takes one run as W&B's does, as far as wandb 0.31 asks; it keeps the steps that it was told."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class WandbServer(ThreadingHTTPServer):
    """``rows`` are the run's history, ``exits`` how each process that told of it ended, ``keys`` what it came with."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.rows: list[dict[str, Any]] = []
        self.exits: list[int] = []
        self.keys: set[str] = set()

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        project = {"id": "p", "name": "code", "entity": {"id": "e", "name": "team"}}
        if operation == "RunResumeStatus":
            return {"model": project | {"bucket": self._kept() if self.rows else None}}
        if operation == "UpsertBucket":
            run = {"id": "b", "name": variables["name"], "displayName": "mine", "config": "{}", "project": project}
            return {"upsertBucket": {"bucket": run, "inserted": not self.rows}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/put/{name}"} for name in variables["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        return {}

    def _kept(self) -> dict[str, Any]:
        last = json.dumps(self.rows[-1])
        counts = {"historyLineCount": len(self.rows), "logLineCount": 0, "eventsLineCount": 0}
        tails = {"historyTail": json.dumps([last]), "eventsTail": "[]", "summaryMetrics": last}
        return {"id": "b", "name": "run", "config": "{}", "tags": [], "wandbConfig": '{"t": 1}', **counts, **tails}

    def stream(self, told: dict[str, Any]) -> None:
        history = told.get("files", {}).get("wandb-history.jsonl", {"offset": 0, "content": []})
        if history["content"]:
            assert history["offset"] == len(self.rows)
        self.rows += map(json.loads, history["content"])
        if "exitcode" in told:
            self.exits.append(told["exitcode"])


class _Handler(BaseHTTPRequestHandler):
    server: WandbServer

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer: dict[str, Any] = {}
        if self.path == "/graphql":
            self.server.keys.add(self.headers["Authorization"])
            asked = json.loads(body)
            operation = re.search(r"(?:query|mutation) (\w+)", asked["query"])
            assert operation
            answer = {"data": self.server.answer(operation[1], asked.get("variables") or {})}
        elif self.path.endswith("/file_stream"):
            self.server.stream(json.loads(body))
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_PUT = do_POST  # noqa: N815 - http.server's words


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    """The server, on a free port."""
    with WandbServer() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(10)
