"""What may be asked of the Hub, and the order that an import's child carries out; without the Hub's library."""

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict

from core.errors import PermissionDeniedError
from core.settings import Settings

Purpose = Literal["fine-tune", "evals"]

_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}"
#: ``owner/name``, or the bare name that the Hub's first datasets have. Never a URL or a path of this machine.
DATASET = rf"^{_NAME}(/{_NAME})?$"
#: Compared with what the repository has, and never part of an address or a path.
CONFIG = r'^[^<>:/\\|?*"\x00-\x1f\x7f]{1,128}$'
SPLIT = r"^\w+([.-]\w+)*$"
REVISION = r"^[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*$"


class Asked(BaseModel):
    """One split of a dataset, and how its rows become a file's lines: what a request asks for."""

    dataset: str
    config: str | None
    split: str
    revision: str | None
    purpose: Purpose
    #: Hone's field -> the dataset's column; empty: the columns have Hone's names.
    columns: dict[str, str]
    skip_bad_rows: bool


class HubOrder(Asked):
    """What was asked for, with the operator's limits and the place of the lines."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_line_bytes: int
    max_file_bytes: int
    #: Where the lines go: an open file that the child inherits.
    out_fd: int


def require_allowed(settings: Settings, dataset: str) -> None:
    """Raise PermissionDeniedError unless the operator allows a dataset by its name, its owner or ``*``."""
    allowed = settings.allowed_hub_datasets
    owner = dataset.partition("/")[0]
    if "*" in allowed or dataset in allowed or ("/" in dataset and f"{owner}/*" in allowed):
        return
    if not allowed:
        reason = "This server imports nothing from the Hub; its operator can allow it with HONE_HUB_DATASETS."
    else:
        reason = f"This server's operator allows these datasets of the Hub: {', '.join(allowed)}."
    raise PermissionDeniedError(
        f"The dataset '{dataset:.200}' can't be imported. {reason} Or upload its files.",
        param="dataset",
        code="dataset_not_allowed",
    )


def file_name(dataset: str, config: str, split: str) -> str:
    """The name that an imported file shows."""
    parts = [dataset.rpartition("/")[2], *([] if config == "default" else [config]), split]
    return re.sub(r"[^\w.-]+", "-", "-".join(parts)) + ".jsonl"
