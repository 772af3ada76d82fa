"""What endpoints ask for: the parts of the application, a session, and the project that the key opens."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Annotated, TypedDict

from celery import Celery
from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.orm import Session

from api.base_cards import BaseCards
from api.import_runs import ImportRuns
from api.key_cache import KeyCache
from api.once import ONCE, Once, json_body
from api.preflight_runs import PreflightRuns
from core.catalogue import Catalogue
from core.errors import AuthenticationError
from core.settings import Settings
from core.storage import Storage
from models.database import Database


@dataclass(frozen=True)
class Parts:
    """What lives as long as the application."""

    settings: Settings
    database: Database
    storage: Storage
    catalogue: Catalogue
    celery: Celery
    cards: BaseCards
    preflights: PreflightRuns
    imports: ImportRuns
    keys: KeyCache = field(default_factory=KeyCache)


class LifespanState(TypedDict):
    """What the lifespan hands to every request."""

    parts: Parts


async def get_parts(request: Request) -> Parts:
    """The application's parts."""
    parts: Parts = request.state.parts
    return parts


PartsDep = Annotated[Parts, Depends(get_parts)]


async def _settings(parts: PartsDep) -> Settings:
    return parts.settings


async def _storage(parts: PartsDep) -> Storage:
    return parts.storage


async def _catalogue(parts: PartsDep) -> Catalogue:
    return parts.catalogue


async def _read_session(parts: PartsDep) -> AsyncIterator[Session]:
    # No thread for this: a session opens its connection at its first query, in the endpoint's thread, where
    # json_body closes it as well.
    with parts.database.read() as session:
        yield session


SettingsDep = Annotated[Settings, Depends(_settings)]
StorageDep = Annotated[Storage, Depends(_storage)]
CatalogueDep = Annotated[Catalogue, Depends(_catalogue)]

# scope="function": left when the endpoint has returned and its response is built, before a byte of it is sent. So a
# commit that fails is an error to the client, not a 200, and no connection is held while a response streams.
ReadSession = Annotated[Session, Depends(_read_session, scope="function")]

_bearer = HTTPBearer(auto_error=False, description="An API key; `hone keys create` makes one.")


async def _current_project(
    parts: PartsDep, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> str:
    """The project's id. Its session ends here: requests that hold one and wait for another could starve the pool."""
    if credentials is None or not credentials.credentials:
        raise AuthenticationError(
            "No API key was given. Send it as 'Authorization: Bearer <key>'.", code="missing_api_key"
        )
    key = credentials.credentials
    if (project_id := parts.keys.find(key)) is not None:
        return project_id
    return await run_in_threadpool(parts.keys.ask, parts.database, key)


CurrentProject = Annotated[str, Depends(_current_project)]


async def _once(request: Request, project_id: CurrentProject) -> Once:
    once = Once(request)
    if once.asked and not request.headers.get("content-type", "").startswith("multipart/"):
        once.identify(project_id, await json_body(request))
    return once


#: The request's `Idempotency-Key`, identified by its JSON; who takes a multipart form identifies it by what is in it.
OnceDep = Annotated[Once, Depends(_once)]


def _write_session(parts: PartsDep, once: OnceDep) -> Iterator[Session]:
    with parts.database.write() as session:
        session.info[ONCE] = once
        yield session


# In function scope as ReadSession. What an endpoint does in it is done once for each Idempotency-Key.
WriteSession = Annotated[Session, Depends(_write_session, scope="function")]
