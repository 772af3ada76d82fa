"""The API on both databases: in process through Starlette's client, and over a socket for OpenAI's."""

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI
from openai import OpenAI
from sqlalchemy import func, select
from starlette.testclient import TestClient

from api.main import create_app
from core.settings import Settings
from models.database import Database
from models.tables import File, Job
from tests.conftest import make_key, postgres_copy

# Nothing listens there: the API must do its work without a broker.
NO_BROKER = "redis://127.0.0.1:1/0"


_CATALOGUE = """
[tiny]
source = "folder"
path = "/nowhere"
description = "A tiny Llama."

["org/base"]
source = "folder"
path = "/nowhere"
"""


def small_settings(folder: Path, database_url: str) -> Settings:
    """Settings with small limits, and two base models that are never opened: the API only knows their names."""
    catalogue = folder / "catalogue.toml"
    catalogue.write_text(_CATALOGUE)
    return Settings(
        home=folder / "home",
        database_url=database_url,
        storage_url=(folder / "storage").as_uri(),
        redis_url=NO_BROKER,
        catalogue=catalogue,
        max_body_bytes=20_000,
        max_file_bytes=200_000,
        max_line_bytes=5_000,
    )


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    """Settings with small limits, on each database engine."""
    return small_settings(tmp_path, database_url)


@pytest.fixture
def http(settings: Settings, key: str) -> Iterator[TestClient]:
    """The API in this process, with a key."""
    app = create_app(settings)
    with TestClient(app, raise_server_exceptions=False, headers={"Authorization": f"Bearer {key}"}) as client:
        yield client


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """A real server on a free port; its base URL."""
    # By its number, or asyncio would leave Nagle's algorithm on, and each answer would wait 40 ms for an ACK.
    with socket.socket(proto=socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=5))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        deadline = time.monotonic() + 20
        while not server.started and thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.005)
        assert server.started
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)


@pytest.fixture
def base_url(settings: Settings, key: str) -> Iterator[str]:
    """The API behind a real socket."""
    with served(create_app(settings)) as url:
        yield url


@pytest.fixture
def client(base_url: str, key: str) -> Iterator[OpenAI]:
    """OpenAI's own client, which does not try again by itself here."""
    with OpenAI(base_url=f"{base_url}/v1", api_key=key, max_retries=0) as made:
        yield made


@dataclass(frozen=True)
class Shared:
    """An API for the tests of one module that are refused and so leave nothing behind."""

    http: TestClient
    database: Database
    storage: Path

    def made(self) -> dict[str, int]:
        """How many files, jobs, and objects in storage there are."""
        with self.database.read() as session:
            rows = {
                table.__tablename__: session.scalar(select(func.count()).select_from(table)) or 0
                for table in (File, Job)
            }
        return {**rows, "objects": sum(path.is_file() for path in self.storage.rglob("*"))}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """An API on each database engine, made once a module: making a PostgreSQL database takes half a second."""
    folder = tmp_path_factory.mktemp("shared")
    with ExitStack() as stack:
        if request.param == "sqlite":
            template = request.getfixturevalue("sqlite_template")
            url = f"sqlite:///{shutil.copy(template, folder / 'hone.db')}"
        else:
            url = stack.enter_context(postgres_copy(request.getfixturevalue("postgres_template")))
        database = Database(url)
        key = make_key(database)
        app = create_app(small_settings(folder, url))
        client = TestClient(app, raise_server_exceptions=False, headers={"Authorization": f"Bearer {key}"})
        yield Shared(stack.enter_context(client), database, folder / "storage")
        database.dispose()
