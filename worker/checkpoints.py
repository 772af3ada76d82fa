"""Checkpoints on disk: a folder counts only when its manifest, written last, agrees with every file."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from core.errors import TrainingError

MANIFEST = "manifest.json"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(folder: Path) -> dict[str, str]:
    """SHA-256 of each file directly in a folder, the manifest itself left out."""
    paths = sorted(path for path in folder.iterdir() if path.is_file() and path.name != MANIFEST)
    return {path.name: sha256_of(path) for path in paths}


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Seal a folder: its files reach the disk, then the manifest with their SHA-256 is renamed into place."""
    for path in folder.iterdir():
        _sync(path)
    partial = folder / f"{MANIFEST}.partial"
    partial.write_text(json.dumps({**content, "files": hash_files(folder)}, indent=2) + "\n", encoding="utf-8")
    _sync(partial)
    partial.rename(folder / MANIFEST)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """A sealed folder's manifest, or None when the folder is not whole."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        hashes: dict[str, str] = manifest["files"]
        whole = all(sha256_of(folder / name) == digest for name, digest in hashes.items())
    except (OSError, ValueError, KeyError):
        return None
    return manifest if whole else None


def checkpoint_step(folder: Path | None) -> int:
    """The step of a sealed checkpoint, 0 for none. Raises TrainingError when the folder is not whole."""
    if folder is None:
        return 0
    manifest = read_manifest(folder)
    if manifest is None:
        raise TrainingError(f"The checkpoint {folder.name} is not whole.", code="checkpoint_broken")
    return int(manifest["step"])
