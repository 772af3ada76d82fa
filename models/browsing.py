"""Sessions of the dashboard: a key is shown once, and a cookie stands for it until it ends or the key is revoked."""

import secrets
from dataclasses import dataclass

from sqlalchemy import delete, or_, select
from sqlalchemy.orm import Session

from core.errors import AuthenticationError
from models.accounts import hash_key
from models.base import db_now
from models.tables import ApiKey, DashboardSession, Project

#: Seconds that a session lives: a working week and its weekend.
LIFETIME = 7 * 86_400


@dataclass(frozen=True)
class Viewer:
    """Who looks: a project, through one of its keys."""

    project_id: str
    project_name: str
    key_name: str
    key_hint: str


def begin(session: Session, key: str) -> str:
    """A new session's token, 256 random bits, for a key that is valid. Raises AuthenticationError."""
    key_id = session.scalar(select(ApiKey.id).where(ApiKey.sha256 == hash_key(key), ApiKey.revoked_at.is_(None)))
    if key_id is None:
        raise AuthenticationError(
            "This key opens nothing here. `hone keys create` makes a new one.", code="invalid_api_key"
        )
    session.execute(delete(DashboardSession).where(DashboardSession.expires_at < db_now()))
    token = secrets.token_urlsafe(32)
    now = session.scalar(select(db_now())) or 0.0
    session.add(DashboardSession(sha256=hash_key(token), key_id=key_id, expires_at=now + LIFETIME))
    return token


def find(session: Session, token: str) -> Viewer | None:
    """Whose session this is; None when it has ended, or its key was revoked."""
    mine = (
        select(Project.id, Project.name, ApiKey.name, ApiKey.hint)
        .join(ApiKey, ApiKey.project_id == Project.id)
        .join(DashboardSession, DashboardSession.key_id == ApiKey.id)
        .where(
            DashboardSession.sha256 == hash_key(token),
            DashboardSession.expires_at > db_now(),
            ApiKey.revoked_at.is_(None),
        )
    )
    found = session.execute(mine).first()
    return None if found is None else Viewer(*found)


def end(session: Session, token: str) -> None:
    """End a session, and whichever have run out."""
    mine = DashboardSession.sha256 == hash_key(token)
    session.execute(delete(DashboardSession).where(or_(mine, DashboardSession.expires_at < db_now())))
