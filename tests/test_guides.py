"""The guides in docs/: each block of code is run against a real Hone, or says why it is only shown."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cli.exits import Exit
from tests.core.test_hub_child import jsonl, parquet
from tests.e2e.service import Service, served, train_lines
from tests.hub_server import FakeHub, fake_hub

DOCS = Path(__file__).parents[1] / "docs"
GUIDES = ["command-line", "openai-client", "hub-datasets", "gpu-box", "two-machines"]
_FENCE = re.compile(r"^(?:<!-- (run|shown: [^\n]+) -->\n)?```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A block of code: whether it is run, in what language, and its text."""

    mark: str
    language: str
    text: str


def blocks(guide: str) -> list[Block]:
    """The blocks of a guide in their order."""
    text = (DOCS / f"{guide}.md").read_text(encoding="utf-8")
    return [Block(*found.groups(default="")) for found in _FENCE.finditer(text)]


def script(guide: str) -> tuple[str, str]:
    """The language of a guide's blocks that are run, and all of them as one script, in which variables live on."""
    wanted = [block for block in blocks(guide) if block.mark == "run"]
    (language,) = {block.language for block in wanted}
    return language, "\n".join(block.text for block in wanted)


@pytest.mark.parametrize("guide", GUIDES)
def test_every_block_is_run_or_says_why_not(guide: str):
    found = blocks(guide)
    text = (DOCS / f"{guide}.md").read_text(encoding="utf-8")
    assert len(found) == text.count("```") // 2
    assert [block.text for block in found if not block.mark] == []
    assert any(block.mark == "run" for block in found)


def test_the_guides_link_only_to_what_is_there():
    for guide in GUIDES:
        for target in re.findall(r"\]\(([\w./-]+)\)", (DOCS / f"{guide}.md").read_text(encoding="utf-8")):
            assert (DOCS / target).exists(), f"{guide}: {target}"


def test_the_table_of_exit_codes_is_the_code():
    text = (DOCS / "command-line.md").read_text(encoding="utf-8")
    table = text.split("<!-- exits:", 1)[1].split("\n\n", 1)[0]
    rows = dict(re.findall(r"^\| (\d) \| (.+) \|$", table, flags=re.MULTILINE))
    source = (Path(__file__).parents[1] / "cli" / "exits.py").read_text(encoding="utf-8")
    told = re.findall(r"#: (.+)\n    (\w+) = (\d)", source)
    assert rows == {number: words for words, _, number in told}
    assert {int(number) for number in rows} == set(Exit)


def write_inputs(folder: Path) -> None:
    """The files that the guides speak of."""
    (folder / "train.jsonl").write_bytes(train_lines(24))
    (folder / "broken.jsonl").write_bytes(train_lines(2) + b'{"instruction": "no answer"}\n')
    items = [{"item": {"instruction": f"Write add_{n}.", "completion": f"def add_{n}(x): return x"}} for n in range(2)]
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))


def environment(**values: str) -> dict[str, str]:
    """What a user's shell has: `hone` on the PATH, and the settings that the guide speaks of."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return os.environ | {"PATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "200"} | values


def run(guide: str, folder: Path, env: dict[str, str], seconds: int = 280) -> str:
    """Run a guide's script in ``folder``; what it printed. Whatever it started is gone afterwards."""
    language, text = script(guide)
    command = {"sh": ["bash", "-euo", "pipefail", "-c", text], "python": [sys.executable, "-c", text]}[language]
    out = folder / "output"
    with out.open("wb") as output:
        started = subprocess.Popen(
            command, cwd=folder, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = started.wait(seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)
            started.wait()
    told = out.read_text(errors="replace")
    assert code == 0, told[-3000:]
    return told


@pytest.fixture(scope="module")
def catalogue_file(tmp_path_factory, tiny_llama) -> Path:
    """The guides' model, as the tiny Llama."""
    path = tmp_path_factory.mktemp("guides") / "catalogue.toml"
    path.write_text(f'[smollm2-135m-instruct]\nsource = "folder"\npath = "{tiny_llama}"\n')
    return path


@pytest.fixture(scope="module")
def service(tmp_path_factory, catalogue_file) -> Iterator[Service]:
    """One `hone up` for the guides that need one, and a hub with the datasets that they speak of."""
    home = tmp_path_factory.mktemp("guides") / "home"
    with fake_hub() as hub:
        _fill(hub)
        settings = {"HONE_HUB_DATASETS": "*", "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
        with served(home, catalogue_file, **settings) as started:
            yield started


def _fill(hub: FakeHub) -> None:
    chats = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}]
    hub.add("HuggingFaceH4/no_robots", {"data/train-00000-of-00001.parquet": parquet(chats)})
    hub.add(
        "openai/gsm8k", {"main/test-0.parquet": parquet([{"question": "1 + 1", "answer": "2"}]), "README.md": _README}
    )
    items = [{"task_id": "HumanEval/0", "prompt": "def f():", "canonical_solution": "    return 1"}]
    hub.add("openai/openai_humaneval", {"test.jsonl": jsonl(items)})


_README = b"""---
configs:
- config_name: main
  data_files: [{split: test, path: main/test-*}]
---
"""


@pytest.mark.parametrize(
    ("guide", "words"),
    [
        ("command-line", ["24 samples", "steps", "succeeded", "tuned", "is missing", "jobs"]),
        ("openai-client", ["smollm2-135m-instruct", "line 3, field 'output'", "24 samples", "succeeded ft:"]),
        ("hub-datasets", ["file-", '"purpose": "evals"', '"dataset": "openai/openai_humaneval"']),
        ("gpu-box", ["driver", "models", "in-house", "laptop", "steps"]),
    ],
)
def test_a_guide_works_as_it_stands(guide: str, words: list[str], service: Service, tmp_path: Path):
    write_inputs(tmp_path)
    url = service.base_url
    env = environment(
        HONE_HOME=str(service.home),
        HONE_CATALOGUE=service.environment["HONE_CATALOGUE"],
        HONE_BASE_URL=url,
        HONE_API_KEY=service.key,
        OPENAI_BASE_URL=url,
        OPENAI_API_KEY=service.key,
    )
    told = run(guide, tmp_path, env)
    assert [word for word in words if word not in told] == [], told
    if guide == "command-line":
        assert (tmp_path / "adapter" / "adapter_config.json").exists()


@pytest.mark.skipif(shutil.which("curl") is None, reason="the guide asks with curl, which is not installed here")
def test_two_machines_work_as_they_stand(tmp_path: Path, postgres_template: str, valkey_url: str, catalogue_file: Path):
    from sqlalchemy import make_url

    from tests.conftest import _execute

    write_inputs(tmp_path)
    server = make_url(postgres_template).set(database="postgres").render_as_string(False)
    _execute(server, "CREATE DATABASE two_machines")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    database = make_url(postgres_template).set(database="two_machines", drivername="postgresql")
    env = environment(
        HONE_HOME=str(tmp_path / "home"),
        HONE_PORT=str(port),
        HONE_DATABASE_URL=database.render_as_string(False),
        HONE_REDIS_URL=valkey_url,
        HONE_STORAGE_URL=(tmp_path / "storage").as_uri(),
        HONE_CATALOGUE=str(catalogue_file),
    )
    try:
        told = run("two-machines", tmp_path, env)
    finally:
        _execute(server, "DROP DATABASE two_machines WITH (FORCE)")
    assert "succeeded" in told
    assert "fits: " in told
