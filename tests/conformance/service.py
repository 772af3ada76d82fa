"""One Hone for all clients: the API over HTTP, and two workers whose children are stand-ins: nothing is trained."""

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from api.main import create_app
from core.settings import Settings
from core.storage import Storage
from models.database import Database
from tests.api.conftest import served, small_settings
from tests.conftest import make_key
from tests.worker.world import stand_in
from worker.slot import Slot

_ROOT = Path(__file__).parents[2]
_LONGEST = 420


@dataclass(frozen=True)
class Service:
    """A Hone that is up."""

    base_url: str
    database: Database
    settings: Settings

    def key(self, project: str) -> str:
        """A key of a new project."""
        return make_key(self.database, project)

    def drive(self, python: Path) -> dict[str, Any]:
        """The report of one version's client, each of its two kinds in projects of its own."""
        keys = {kind: [self.key("mine"), self.key("theirs")] for kind in ("sync", "async")}
        order = json.dumps({"base_url": self.base_url, "keys": keys})
        command = [str(python), "-m", "tests.conformance.driver"]
        done = subprocess.run(
            command, input=order, cwd=_ROOT, capture_output=True, text=True, timeout=_LONGEST, check=False
        )
        assert done.returncode == 0, done.stderr[-4000:]
        report: dict[str, Any] = json.loads(done.stdout)
        return report

    def drive_all(self, pythons: dict[str, Path]) -> dict[str, dict[str, Any]]:
        """The report of each version."""
        with ThreadPoolExecutor(3) as pool:
            return dict(zip(pythons, pool.map(self.drive, pythons.values()), strict=True))


@contextmanager
def hone(folder: Path, database_url: str) -> Iterator[Service]:
    """A Hone with two workers."""
    fast = {"webhook_private_targets": True, "poll_seconds": 0.1, "heartbeat_seconds": 0.1, "cancel_grace_seconds": 5}
    wandb = {"wandb_api_key": SecretStr("never used: the stand-in tells nobody")}
    settings = small_settings(folder, database_url).model_copy(update=fast | wandb)
    database = Database(database_url)
    storage = Storage(settings.resolved_storage_url)
    with ExitStack() as stack:
        stack.callback(database.dispose)
        base_url = stack.enter_context(served(create_app(settings)))
        slots = [Slot(database, storage, settings, stand_in("steps=4", "save=2")) for _ in range(2)]
        for slot in slots:
            slot.start()
        yield Service(base_url, database, settings)
        for slot in slots:
            slot.drain()
        assert all(slot.join(20) for slot in slots)
