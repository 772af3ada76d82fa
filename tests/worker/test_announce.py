"""What a worker tells of itself."""

import os

import pytest
from sqlalchemy import select, update

from core.base_card import BaseCard, card_key
from core.catalogue import FolderModel
from core.settings import Settings
from models.base import db_now
from models.database import Database
from models.tables import Worker
from worker.announce import Announcer, Machine, look, memory_limit

GPU = Machine("cuda", "NVIDIA L4", 24 * 2**30, 1, True)
DRIVER = """#!/bin/sh
echo "0, GPU-aaa, NVIDIA H100 80GB HBM3, 81559, 9.0"
echo "1, GPU-bbb, Tesla T4, 15360, 7.5"
"""


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """A driver's command on the PATH that tells of two GPUs."""
    command = tmp_path / "bin" / "nvidia-smi"
    command.parent.mkdir()
    command.write_text(DRIVER)
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    return command


@pytest.mark.parametrize(
    ("visible", "name", "gpus", "fast"),
    [
        (None, "NVIDIA H100 80GB HBM3", 2, True),
        ("1", "Tesla T4", 1, False),
        ("GPU-bbb", "Tesla T4", 1, False),
        ("0,1", "NVIDIA H100 80GB HBM3", 2, True),
    ],
)
def test_a_gpu_is_told_as_the_driver_tells_it(driver, visible, name, gpus, fast):
    found = look({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    assert (found.device, found.name, found.gpus, found.fast_bfloat16) == ("cuda", name, gpus, fast)
    assert found.memory >= 15 * 2**30


@pytest.mark.parametrize("script", [None, "#!/bin/sh\nexit 9\n", "#!/bin/sh\necho 'No devices were found'\n"])
def test_without_a_gpu_the_processor_is_told(driver, script):
    if script:
        driver.write_text(script)
    found = look({"CUDA_VISIBLE_DEVICES": ""} if script is None else {})
    assert (found.device, found.gpus, found.memory) == ("cpu", 0, memory_limit())
    assert found.name


def test_a_worker_is_announced_seen_again_and_taken_away(database: Database, storage, settings):
    announcer = Announcer("me", database, storage, settings)
    with database.write() as session:
        session.add(Worker(owner="long gone", **vars(GPU), seen_at=1.0))
    announcer.beat(GPU)
    with database.write() as session:
        session.execute(update(Worker).values(seen_at=db_now() - 100))
    announcer.beat(GPU)
    with database.read() as session:
        (row,) = session.scalars(select(Worker)).all()
        assert (row.owner, row.device, row.memory) == ("me", "cuda", 24 * 2**30)
        assert session.scalar(select(db_now())) - row.seen_at < 50
    announcer.stop()
    with database.read() as session:
        assert session.scalars(select(Worker)).all() == []


def test_cards_of_models_that_are_here_are_made_once(sqlite_url, storage, tmp_path, catalogue, tiny_llama):
    with catalogue.open("a") as file:
        file.write('[gone]\nsource = "folder"\npath = "/nowhere"\n')
    here = Settings(home=tmp_path / "home", database_url=sqlite_url, catalogue=catalogue)
    database = Database(sqlite_url)
    announcer = Announcer("me", database, storage, here)
    announcer.make_cards()
    key = card_key("tiny", FolderModel(source="folder", path=tiny_llama, description="A tiny Llama."))
    assert list(storage.list("base-models")) == [key]
    assert BaseCard.model_validate_json(b"".join(storage.get(key))).config["hidden_size"] == 64
    storage.put(key, [b"kept"])
    announcer.make_cards()
    assert b"".join(storage.get(key)) == b"kept"
    database.dispose()
