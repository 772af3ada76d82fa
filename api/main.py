"""The application: routes, middleware, and what lives as long as the process."""

import contextlib
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import FrameType

import uvicorn
from anyio.to_thread import run_sync
from fastapi import FastAPI
from starlette.middleware import Middleware

from api import (
    dashboard,
    estimates,
    eval_runs,
    evals,
    files,
    graders,
    health,
    imports,
    jobs,
    models,
    multipart_uploads,
    permissions,
    preflight,
    webhooks,
)
from api.base_cards import BaseCards
from api.deps import LifespanState, Parts
from api.errors import install_error_handlers
from api.import_runs import ImportRuns
from api.middleware import BodyLimit, RefuseNul, RequestLog
from api.orphans import OrphanSweep
from api.preflight_runs import PreflightRuns
from api.reaper import Reaper
from api.relay import Relay
from api.webhook_sender import WebhookSender
from core.broker import make_celery
from core.catalogue import load_catalogue
from core.logging import configure_logging
from core.settings import Settings, get_settings
from core.storage import Storage
from models.database import Database

_DESCRIPTION = "Fine-tuning and evaluation in OpenAI's wire format. Everything beyond it is under the field `hone`."


def make_parts(settings: Settings) -> Parts:
    """Open what the application needs. Raises InvalidRequestError when the catalogue can't be read."""
    database, storage = Database(settings.resolved_database_url), Storage(settings.resolved_storage_url)
    catalogue = load_catalogue(settings)
    cards = BaseCards(storage, catalogue, settings)
    return Parts(
        settings=settings,
        database=database,
        storage=storage,
        catalogue=catalogue,
        celery=make_celery(settings),
        cards=cards,
        preflights=PreflightRuns(database, cards, settings),
        imports=ImportRuns(database, storage, settings),
    )


def create_app(settings: Settings | None = None) -> FastAPI:
    """The API. It expects a database at the newest schema: migrations are the supervisor's."""
    chosen = settings or get_settings()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[LifespanState]:
        parts = make_parts(chosen)
        relay = Relay(parts.database, parts.celery, chosen.poll_seconds)
        reaper = Reaper(parts.database, parts.storage, chosen)
        orphans = OrphanSweep(parts.database, parts.storage)
        sender = WebhookSender(parts.database, chosen)

        def wake() -> None:
            relay.wake()
            sender.wake()

        parts.database.on_outbox = wake
        relay.start()
        sender.start()
        reaper.start()
        orphans.start()
        parts.imports.start()
        try:
            yield LifespanState(parts=parts)
        finally:
            await run_sync(parts.imports.stop)
            await run_sync(relay.stop)
            await run_sync(sender.stop)
            await run_sync(reaper.stop)
            await run_sync(orphans.stop)
            await run_sync(parts.preflights.stop)
            parts.celery.close()
            parts.database.dispose()

    app = FastAPI(
        title="Hone",
        description=_DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,
        # From the outside in: every answer, a refused body's too, has an id and a line in the log.
        middleware=[
            Middleware(RequestLog),
            Middleware(RefuseNul),
            Middleware(BodyLimit, max_body_bytes=chosen.max_body_bytes, max_file_bytes=chosen.max_file_bytes),
        ],
    )
    app.state.stopping = threading.Event()  # streams look at it: they would hold a server that stops
    install_error_handlers(app)
    # /v1/files/imports comes before /v1/files/{file_id}.
    on_files = (imports, files, preflight, multipart_uploads)
    on_jobs = (jobs, estimates, permissions, graders, models)
    for part in (*on_jobs, *on_files, health, eval_runs, evals, webhooks):  # what is polled comes first
        app.include_router(part.router)
    dashboard.install(app)
    return app


class _Server(uvicorn.Server):
    """Tells the streams when it is asked to stop: uvicorn waits for them before the lifespan ends."""

    def __init__(self, config: uvicorn.Config, stopping: threading.Event) -> None:
        super().__init__(config)
        self._stopping = stopping

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Note a signal."""
        self._stopping.set()
        super().handle_exit(sig, frame)


def serve() -> None:
    """Serve on the settings' host and port until SIGTERM."""
    configure_logging()
    settings = get_settings()
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,  # api.middleware writes the line
        server_header=False,
        timeout_graceful_shutdown=20,
    )
    server = _Server(config, app.state.stopping)
    with contextlib.suppress(KeyboardInterrupt):  # as uvicorn.run does: it raises the signal again when it is done
        server.run()
    if not server.started:
        sys.exit(3)  # as uvicorn.run, whose supervisor this would be
