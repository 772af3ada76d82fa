"""Work folders and what is put into them."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from core.settings import Settings
from core.storage import Storage
from models.lifecycle import Claim
from models.status import JobKind
from worker import bundles
from worker.bundles import BundleError
from worker.checkpoints import write_manifest
from worker.workspace import open_workspace, sweep

CLAIM = Claim("ftjob-1", JobKind.FINE_TUNE, epoch=2, attempt=1, owner="me")


@pytest.fixture
def home(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


def test_a_work_folder_is_empty_at_first_and_gone_at_the_end(home: Settings) -> None:
    left_over = home.home / "work" / "ftjob-1" / "1-2" / "out" / "checkpoint-3"
    left_over.mkdir(parents=True)
    with open_workspace(home, CLAIM) as space:
        assert space.folder == home.home / "work" / "ftjob-1" / "1-2"
        assert list(space.out.iterdir()) == []
    assert not space.folder.parent.exists()


def test_a_sweep_removes_dead_folders_and_leaves_those_in_use(home: Settings) -> None:
    dead = home.home / "work" / "ftjob-0" / "1-1"
    dead.mkdir(parents=True)
    (dead / "stderr.log").write_text("left over")
    with open_workspace(home, CLAIM) as space:
        sweep(home)
        assert space.out.is_dir()
        assert not dead.parent.exists()


def test_a_packed_folder_comes_back_whole_and_packs_to_the_same_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    (folder / "tensors").write_bytes(bytes(range(256)) * 10_000)
    (folder / "empty").write_bytes(b"")
    write_manifest(folder, {"step": 1})
    names = [*bundles.verify(folder), "manifest.json"]
    packed = b"".join(bundles.pack(folder, names))
    assert packed == b"".join(bundles.pack(folder, names))
    (tmp_path / "a.zip").write_bytes(packed)
    bundles.unpack(tmp_path / "a.zip", tmp_path / "back")
    assert bundles.verify(tmp_path / "back") == ["empty", "tensors"]


def test_packing_into_storage_hashes_what_was_stored(tmp_path: Path, storage: Storage) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "a").write_text("a")
    stored = storage.put("jobs/x.zip", bundles.pack(folder, ["a"]))
    storage.get_file("jobs/x.zip", tmp_path / "x.zip")
    assert bundles.sha256_of(tmp_path / "x.zip") == stored.sha256
    assert zipfile.ZipFile(tmp_path / "x.zip").read("a") == b"a"


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/b", "a\\b", "..", "c:evil"])
def test_a_zip_with_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(name, "evil")
    with pytest.raises(BundleError, match="no plain file name"):
        bundles.unpack(tmp_path / "a.zip", tmp_path / "inner" / "folder")
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: (folder / "a").write_text("b"), "a differs"),
        (lambda folder: (folder / "a").unlink(), "a is missing"),
        (lambda folder: (folder / "manifest.json").unlink(), "can't be read"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "can't be read"),
        (lambda folder: (folder / "manifest.json").write_text(json.dumps({"files": {"../a": "0"}})), "no plain"),
    ],
    ids=["changed", "missing", "no manifest", "empty manifest", "escaping"],
)
def test_a_folder_that_is_not_whole_is_refused(tmp_path: Path, spoil: Callable[[Path], object], reason: str) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "a").write_text("a")
    write_manifest(folder, {})
    spoil(folder)
    with pytest.raises(BundleError, match=reason):
        bundles.verify(folder)


def test_a_truncated_zip_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a", "a" * 1000)
    (tmp_path / "a.zip").write_bytes((tmp_path / "a.zip").read_bytes()[:500])
    with pytest.raises(BundleError, match="no zip that can be read"):
        bundles.unpack(tmp_path / "a.zip", tmp_path / "f")
