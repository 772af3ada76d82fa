"""What permissions of checkpoints look like on the wire."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from api.pagination import Listed
from core.specs import Spec
from models.tables import CheckpointPermission


class PermissionRequest(Spec):
    """The body of POST …/permissions."""

    project_ids: list[Annotated[str, Field(min_length=1, max_length=64)]] = Field(min_length=1, max_length=100)


class PermissionObject(Listed):
    """OpenAI's permission."""

    object: Literal["checkpoint.permission"] = "checkpoint.permission"
    created_at: int
    project_id: str


class PermissionDeleted(BaseModel):
    """What a deletion answers."""

    id: str
    object: Literal["checkpoint.permission"] = "checkpoint.permission"
    deleted: Literal[True] = True


def permission_object(row: CheckpointPermission) -> PermissionObject:
    """A permission's row as it goes onto the wire."""
    return PermissionObject(id=row.id, created_at=int(row.created_at), project_id=row.project_id)
