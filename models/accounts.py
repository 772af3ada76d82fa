"""Projects and their keys."""

import hashlib

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.errors import AuthenticationError
from core.ids import new_key
from models.base import db_now
from models.tables import ApiKey, Project


def hash_key(key: str) -> str:
    """SHA-256 of a key, in hexadecimal."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def create_project(session: Session, name: str) -> Project:
    """A new project."""
    project = Project(name=name)
    session.add(project)
    session.flush()
    return project


def create_key(session: Session, project: Project, name: str, key: str | None = None) -> str:
    """Store a key (a new one unless given) for a project and return it; it can't be read again."""
    key = key or new_key()
    session.add(ApiKey(project_id=project.id, name=name, sha256=hash_key(key), hint=f"…{key[-4:]}"))
    session.flush()
    return key


def authenticate(session: Session, key: str) -> str:
    """The id of the project that ``key`` opens. Raises AuthenticationError."""
    found = session.execute(
        select(ApiKey.project_id).where(ApiKey.sha256 == hash_key(key), ApiKey.revoked_at.is_(None))
    ).scalar_one_or_none()
    if found is None:
        raise AuthenticationError("Incorrect API key provided. `hone keys create` makes one.", code="invalid_api_key")
    return found


def ensure_first_key(session: Session, key: str | None) -> str | None:
    """On an empty database, make the project `default` and its first key (``key``, or a new one) and return it."""
    if session.scalar(select(ApiKey.id).limit(1)) is not None:
        return None
    return create_key(session, create_project(session, "default"), "first", key)


def revoke_key(session: Session, key_id: str) -> bool:
    """Refuse a key from now on; False when there is none of that id."""
    key = session.get(ApiKey, key_id)
    if key is None:
        return False
    key.revoked_at = session.scalar(select(db_now()))
    return True
