"""The worker's Celery application: it receives hints, each of which wakes the slot (docs/decisions/0002)."""

import signal
import sys
from typing import Any

from celery import Celery, signals

from core.broker import HINT, make_celery
from core.logging import configure_logging, get_logger
from core.settings import Settings
from core.storage import Storage
from models.database import Database
from worker.announce import Announcer
from worker.slot import Slot
from worker.supervise import Command, child_command

log = get_logger(__name__)

#: Seconds that the process waits for the slot to drain: the child's 20 s of grace, and time to store a checkpoint.
DRAIN_SECONDS = 100.0


def create_app(settings: Settings, slot: Slot) -> Celery:
    """An application whose worker opens ``slot`` before it looks for the broker, and drains it when told to stop."""
    app = make_celery(settings)
    app.conf.worker_disable_prefetch = settings.resolved_redis_url.startswith("redis")

    @app.task(name=HINT, shared=False)  # type: ignore[untyped-decorator]
    def hint(job_id: str) -> None:
        slot.wake()

    def start(**_: Any) -> None:
        slot.start()

    def drain(**_: Any) -> None:
        slot.drain()

    # The first is sent before the first connection to the broker; the second inside the handler of SIGTERM or SIGINT,
    # wherever the main thread is, be it in the loop that tries to reach the broker.
    signals.worker_init.connect(start, weak=False)
    signals.worker_shutting_down.connect(drain, weak=False)
    # Celery leaves logging alone when someone listens here.
    signals.setup_logging.connect(_keep_logging, weak=False)
    return app


def _keep_logging(**_: Any) -> None:
    """Logging was configured by ``run``."""


def run(settings: Settings, command: Command = child_command) -> int:
    """Work until told to stop; the process's exit code."""
    configure_logging()
    database, storage = Database(settings.resolved_database_url), Storage(settings.resolved_storage_url)
    slot = Slot(database, storage, settings, command)
    announcer = Announcer(slot.owner, database, storage, settings)
    announcer.start()
    app = create_app(settings, slot)
    # Until Celery puts its own handler in place; the slot may have claimed a job by then.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        worker = app.Worker(
            pool="solo",
            concurrency=1,
            quiet=True,
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
            loglevel="INFO",
        )
        worker.start()
        return worker.exitcode or 0
    finally:
        slot.drain()  # the worker may have ended for another reason than a signal
        if not slot.join(DRAIN_SECONDS):
            log.error("slot did not drain in time", seconds=DRAIN_SECONDS)
        announcer.stop()
