"""A preflight in a process of its own, with limits.

    python -m core.preflight_child < ORDER.json

Its standard output has a line of JSON a second, ``{"bytes", "samples"}``, and at the end ``{"found": …}``. The dataset
comes from storage, so that any API process can start it.
"""

import json
import os
import resource
import sys
import time
from typing import Any

from pydantic import BaseModel, ConfigDict

from core.base_card import BaseCard, CardTokenizer
from core.preflight import How, examine
from core.specs import PromptTemplate
from core.storage import Storage

#: Address space; a preflight of 1 GB takes some 250 MB of memory, threads of the tokenizer reserve much more of this.
_MOST_BYTES = 6 * 2**30
_MOST_CPU_SECONDS = 4 * 3600


class Order(BaseModel):
    """What to look at, and how. ``card_key`` None counts characters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    storage_url: str
    file_key: str
    validation_key: str | None
    card_key: str | None
    template: PromptTemplate | None
    system_prompt: str | None
    max_line_bytes: int


def run(order: Order, tell: Any) -> dict[str, Any]:
    """Carry out an order; ``tell`` gets bytes and samples, about once a second."""
    storage = Storage(order.storage_url)
    how = How()
    if order.card_key is not None:
        card = BaseCard.model_validate_json(b"".join(storage.get(order.card_key)))
        how = How(CardTokenizer(card), order.template or card.default_template, order.system_prompt)
    return examine(
        storage.get(order.file_key),
        order.max_line_bytes,
        how,
        validation=storage.get(order.validation_key) if order.validation_key else None,
        on_progress=tell,
    )


def main() -> int:
    """Take the order from standard input."""
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (_MOST_CPU_SECONDS, _MOST_CPU_SECONDS))
    os.nice(10)  # requests come first
    order = Order.model_validate_json(sys.stdin.buffer.read())
    parent, last = os.getppid(), 0.0

    def tell(read: int, samples: int) -> None:
        nonlocal last
        if os.getppid() != parent:
            sys.exit(1)
        if time.monotonic() - last > 1:
            last = time.monotonic()
            _write({"bytes": read, "samples": samples})

    _write({"found": run(order, tell)})
    return 0


def _write(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
