"""Cards of base models: found in storage, or made by a child where the worker's libraries and the model are at hand."""

import threading
import time
from collections import OrderedDict

from core.base_card import BaseCard, CardTokenizer, card_key
from core.card_making import make_card
from core.catalogue import Catalogue, find_base_model
from core.settings import Settings
from core.storage import Storage

#: Tokenizers that are kept; one of 130,000 entries takes some 60 MB.
_KEPT = 3
#: Seconds for which a card that is not there is not looked for again.
_MISSING_SECONDS = 15.0


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
            made = make_card(name, self._catalogue[name], self._settings.home / "models")
            self._storage.put(key, [made])
            return self._keep(key, CardTokenizer(BaseCard.model_validate_json(made)))

    def _keep(self, key: str, tokenizer: CardTokenizer) -> CardTokenizer:
        with self._lock:
            self._missing.pop(key, None)
            self._tokenizers[key] = tokenizer
            if len(self._tokenizers) > _KEPT:
                self._tokenizers.popitem(last=False)
        return tokenizer
