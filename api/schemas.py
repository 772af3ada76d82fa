"""What files and models look like on the wire, and what every object shares."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, StringConstraints

from api.pagination import Listed
from models.access import UsableModel
from models.tables import File, FineTunedModel

#: OpenAI's limits: 16 pairs, keys of 64 and values of 512 characters.
Metadata = Annotated[
    dict[
        Annotated[str, StringConstraints(min_length=1, max_length=64)],
        Annotated[str, StringConstraints(max_length=512)],
    ],
    Field(max_length=16),
]

FilePurpose = Literal["assistants", "batch", "evals", "fine-tune", "user_data", "vision"]


Value = TypeVar("Value")
#: A field that OpenAI's specification knows as present or absent and never as null.
Absent = Annotated[Value | None, Field(exclude_if=lambda value: value is None)]


class Deleted(BaseModel):
    """What a deletion answers."""

    id: str
    object: str
    deleted: Literal[True] = True


class FileObject(Listed):
    """OpenAI's file, and what the check of a dataset found."""

    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: Absent[int]
    filename: str
    purpose: str
    status: Literal["uploaded", "processed", "error"]
    status_details: Absent[str]
    hone: dict[str, Any]


def file_object(file: File) -> FileObject:
    """A file's row as it goes onto the wire."""
    return FileObject(
        id=file.id,
        bytes=file.bytes,
        created_at=int(file.created_at),
        expires_at=None if file.expires_at is None else int(file.expires_at),
        filename=file.filename,
        purpose=file.purpose,
        status=file.status,
        status_details=file.status_details,
        hone={"sha256": file.sha256, "report": file.report, "job_id": file.job_id, "source": file.source},
    )


class ModelObject(Listed):
    """OpenAI's model, and where a fine-tune comes from."""

    object: Literal["model"] = "model"
    created: int
    owned_by: str
    hone: dict[str, Any]


def base_model_object(name: str, description: str) -> ModelObject:
    """An entry of the catalogue; it has no date, so ``created`` is 0."""
    return ModelObject(id=name, created=0, owned_by="hone", hone={"description": description})


def fine_tuned_model_object(model: FineTunedModel) -> ModelObject:
    """A fine-tune's row as it goes onto the wire."""
    return ModelObject(
        id=model.id,
        created=int(model.created_at),
        owned_by=model.project_id,
        hone={"base_model": model.base_model, "job_id": model.job_id, "adapter_file": model.adapter_file_id},
    )


def checkpoint_model_object(model: UsableModel) -> ModelObject:
    """A checkpoint as a model; ``GET …/checkpoints/{id}/adapter`` has its adapter."""
    return ModelObject(
        id=model.id,
        created=int(model.created_at),
        owned_by=model.project_id,
        hone={"base_model": model.base_model, "job_id": model.job_id, "checkpoint": model.adapter.id},
    )
