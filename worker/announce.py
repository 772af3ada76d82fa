"""What a worker tells of itself: what it computes with, that it is there, and the cards of the base models it has."""

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
from sqlalchemy import delete, update
from sqlalchemy.exc import SQLAlchemyError

from core.base_card import card_key
from core.card_making import NoCardError, absent, make_card
from core.catalogue import load_catalogue
from core.errors import HoneError
from core.logging import get_logger
from core.settings import Settings
from core.storage import Storage
from models.base import db_now
from models.database import Database
from models.tables import Worker

log = get_logger(__name__)

#: Seconds between two signs of life.
BEAT_SECONDS = 30.0
#: A worker that was not seen for so long is forgotten.
_FORGET_SECONDS = 7 * 86_400
#: Cards are made this many seconds after the start: a worker that has work to do begins with that.
_CARDS_AFTER = 60.0


@dataclass(frozen=True)
class Machine:
    """What there is to compute with; ``memory`` in bytes, of one GPU or of the machine."""

    device: Literal["cuda", "cpu"]
    name: str
    memory: int
    gpus: int
    fast_bfloat16: bool


def look(environment: Mapping[str, str]) -> Machine:
    """The GPUs as the driver tells of them, else the processor. No torch: this process must stay light."""
    cards = [line.split(", ") for line in _nvidia_smi()]
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        wanted = [word.strip() for word in visible.split(",")]
        cards = [card for card in cards if card[0] in wanted or card[1] in wanted]
    if cards:
        _, _, name, memory, capability = cards[0]
        return Machine("cuda", name, int(memory) * 2**20, len(cards), float(capability) >= 8)
    flags, name = _processor()
    return Machine("cpu", name, memory_limit(), 0, bool({"avx512_bf16", "amx_bf16"} & flags))


def _nvidia_smi() -> list[str]:
    if (command := shutil.which("nvidia-smi")) is None:
        return []
    asked = "--query-gpu=index,uuid,name,memory.total,compute_cap"
    try:
        told = subprocess.run(  # noqa: S603 - the driver's own command
            [command, asked, "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=20, check=False
        )
    except subprocess.TimeoutExpired:
        return []
    return [line for line in told.stdout.splitlines() if line.count(", ") == 4] if told.returncode == 0 else []


def _processor() -> tuple[set[str], str]:
    path = Path("/proc/cpuinfo")
    found: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    return set(found.get("flags", "").split()), found.get("model name") or "processor"


def memory_limit() -> int:
    """Bytes of the machine's memory, or of the container's where it has less."""
    limits = [Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")]
    texts = [path.read_text(encoding="ascii").strip() for path in limits if path.exists()]
    total: int = psutil.virtual_memory().total
    return min([total, *(int(text) for text in texts if text.isdigit())])


class Announcer:
    """Writes the worker's row twice a minute, from a thread of its own, and makes cards that are missing."""

    def __init__(self, owner: str, database: Database, storage: Storage, settings: Settings) -> None:
        self._owner = owner
        self._database = database
        self._storage = storage
        self._settings = settings
        self._stop = threading.Event()
        self._refused: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="announcer", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Take the row away. The thread ends by itself."""
        self._stop.set()
        try:
            with self._database.write() as session:
                session.execute(delete(Worker).where(Worker.owner == self._owner))
        except SQLAlchemyError as error:
            log.warning("worker could not say goodbye", error=str(error))

    def _run(self) -> None:
        machine, began = look(os.environ), time.monotonic()
        while not self._stop.is_set():
            try:
                self.beat(machine)
                if time.monotonic() - began > _CARDS_AFTER:
                    self.make_cards()
            except SQLAlchemyError as error:
                log.warning("worker could not be announced", error=str(error))
            except Exception:
                log.exception("announcer failed")
            self._stop.wait(BEAT_SECONDS)

    def beat(self, machine: Machine) -> None:
        """Write that this worker is there, and forget those that have long been gone."""
        with self._database.write() as session:
            seen = update(Worker).where(Worker.owner == self._owner).values(seen_at=db_now())
            if session.execute(seen.returning(Worker.owner)).first() is None:
                session.execute(delete(Worker).where(Worker.seen_at < db_now() - _FORGET_SECONDS))
                session.add(Worker(owner=self._owner, **vars(machine)))

    def make_cards(self) -> None:
        """Make the cards of base models that are on this machine and have none in storage yet."""
        cache = self._settings.home / "models"
        try:
            catalogue = load_catalogue(self._settings)
        except HoneError as error:
            log.warning("catalogue", error=error.message)
            return
        for name, entry in catalogue.items():
            key = card_key(name, entry)
            if key in self._refused or absent(entry, cache) is not None or self._has(key):
                continue
            try:
                self._storage.put(key, [make_card(name, entry, cache)])
            except NoCardError:
                self._refused.add(key)

    def _has(self, key: str) -> bool:
        try:
            self._storage.get(key)
        except FileNotFoundError:
            return False
        return True
