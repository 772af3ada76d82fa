"""Ids: a prefix that says what it is, then a ULID, so that ids sort by the time they were made."""

import secrets
from typing import Literal

from ulid import ULID, LaxMonotonicPolicy, ULIDGenerator

Prefix = Literal[
    "proj_",
    "key_",
    "file-",
    "fileimport_",
    "upload_",
    "part_",
    "ftjob-",
    "ftevent-",
    "ftckpt-",
    "eval_",
    "evalrun_",
    "outputitem_",
    "outbox_",
    "cp_",
    "req_",
    "we_",
    "whd_",
    "evt_",
]

# Within one process ids rise even inside one millisecond; the events of a transaction keep their order.
_generator = ULIDGenerator(policy=LaxMonotonicPolicy())


def new_id(prefix: Prefix) -> str:
    """A new id, such as ``ftjob-01jd3x…``: 26 lower-case characters after the prefix."""
    return prefix + str(_generator.generate()).lower()


def made_at(id: str) -> float:
    """When an id was made, in seconds since 1970 by the clock of the machine that made it. Raises ValueError."""
    return ULID.from_str(id[-26:]).timestamp


def new_key() -> str:
    """A new API key with 256 random bits."""
    return "hone-" + secrets.token_urlsafe(32)
