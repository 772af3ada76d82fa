"""An import from the Hub in a process of its own, with limits.

    python -m core.hub_child < ORDER.json

It fetches a split file by file, into files without a name, so that nothing stays whatever ends it; writes the lines
into the open file that the order names; and tells a line of JSON a second, ``{"bytes", "total_bytes", "rows"}``. The
last is ``{"done": …}`` or ``{"error": …}``.
"""

import errno
import json
import os
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from typing import IO, Any, BinaryIO, cast

from core.errors import HoneError, UnavailableError
from core.hub import CONVERTED, Hub, Repository
from core.hub_layout import Chosen, choose, converted_layout, is_converted, kind_of, layout_of
from core.hub_order import HubOrder
from core.hub_rows import Lines, too_large

#: Address space; the readers of Parquet, which inherit the limit, ask for as much.
_MOST_BYTES = 4 * 2**30
_MOST_CPU_SECONDS = 4 * 3600
_TELL_SECONDS = 1.0
#: No byte and no row for so long: the library waits without an end for some answers.
_STALL_SECONDS = 300.0
_MOST_MESSAGE = 5_000


class Progress:
    """How far an import is, told every second by a thread of its own, also while the Hub says nothing."""

    def __init__(self, out: IO[str]) -> None:
        self._out = out
        self._lock = threading.Lock()
        self._parent = os.getppid()
        self._over = False
        self._fetched = 0
        self.total_bytes = 0
        self.spool: IO[bytes] | None = None
        self.lines: Lines | None = None
        threading.Thread(target=self._keep_telling, name="progress", daemon=True).start()

    def tell(self, what: dict[str, Any], *, last: bool = False) -> None:
        """Write a line, unless the last one is written."""
        with self._lock:
            if self._over:
                return
            self._over = last
            self._out.write(json.dumps(what) + "\n")
            self._out.flush()

    def fetched(self, size: int) -> None:
        """A file is done with."""
        self.spool = None
        self._fetched += size

    def now(self) -> dict[str, int]:
        """The figures of this moment."""
        try:
            under_way = os.fstat(self.spool.fileno()).st_size if self.spool is not None else 0
        except (OSError, ValueError):  # closed meanwhile
            under_way = 0
        rows = self.lines.rows if self.lines is not None else 0
        return {"bytes": self._fetched + under_way, "total_bytes": self.total_bytes, "rows": rows}

    def _keep_telling(self) -> None:
        last, since = self.now(), time.monotonic()
        while os.getppid() == self._parent:
            if (now := self.now()) != last:
                last, since = now, time.monotonic()
            elif time.monotonic() - since > _STALL_SECONDS:
                self.tell({"error": _STALLED}, last=True)
                os._exit(0)
            self.tell(now)
            time.sleep(_TELL_SECONDS)
        os._exit(1)  # nobody is there to take the lines


_STALLED = {
    "message": f"The Hub has sent nothing for {_STALL_SECONDS:.0f} s. Try again later.",
    "param": None,
    "code": "hub_unreachable",
    "details": None,
}


def run(order: HubOrder, token: str | None, progress: Progress, out: IO[bytes]) -> dict[str, Any]:
    """Carry out an order: the file's report, and where its rows come from. Raises HoneError."""
    hub = Hub(token)
    repository, chosen, converted = find(hub, order)
    files = [repository.files[path] for path in chosen.paths]
    progress.total_bytes = sum(file.size for file in files)
    if progress.total_bytes > order.max_file_bytes:
        raise too_large(order, f"Its files have {progress.total_bytes:,} bytes,")
    progress.lines = lines = Lines(order, out)
    for file in files:
        kind = kind_of(file.path)
        assert kind is not None  # of every file that was chosen
        with tempfile.TemporaryFile() as spool:
            progress.spool = spool
            hub.fetch(repository, file.path, cast(BinaryIO, spool))
            lines.add_file(spool, kind, file.path.lower().endswith(".gz"))
            progress.fetched(file.size)
    report = lines.finish()
    out.flush()
    source = {
        "type": "huggingface",
        "dataset": order.dataset,
        "config": chosen.config,
        "split": chosen.split,
        "revision": CONVERTED if converted else order.revision,
        "commit": repository.commit,
        "files": len(files),
        "columns": order.columns or None,
        "skipped_rows": lines.skipped,
    }
    return {"report": report, "source": source}


def find(hub: Hub, order: HubOrder) -> tuple[Repository, Chosen, bool]:
    """The split's files, and whether the Hub's conversion stands in for a dataset without files of its own to read.

    Raises HoneError.
    """
    repository = hub.find(order.dataset, order.revision)
    paths = list(repository.files)
    if is_converted(paths):
        return repository, choose(converted_layout(paths), order.dataset, order.config, order.split), False
    layout = layout_of(repository.header, paths)
    # A dataset of before 2025 may have a script that makes its rows, which is never run here.
    script = f"{order.dataset.rpartition('/')[2]}.py" in repository.files and "configs" not in repository.header
    name = order.config or layout.default
    has_files = any(layout.configs.values()) if name is None else bool(layout.configs.get(name))
    if (script or not has_files) and order.revision is None:
        converted = hub.find_converted(order.dataset)
        if converted is not None:
            layout = converted_layout(list(converted.files))
            return converted, choose(layout, order.dataset, order.config, order.split), True
    return repository, choose(layout, order.dataset, order.config, order.split), False


def _limit(order: HubOrder) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (_MOST_CPU_SECONDS, _MOST_CPU_SECONDS))
    # Python ignores the signal, so that a file which is larger than the Hub said ends in an OSError.
    most = order.max_file_bytes + order.max_line_bytes + 2**20
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    os.nice(10)  # requests come first


def _failure(error: HoneError) -> dict[str, Any]:
    """An error as a line, without characters that a database refuses: a dataset may call its columns anything."""
    message = "".join(sign if sign.isprintable() else " " for sign in error.message[:_MOST_MESSAGE])
    return {"error": {"message": message, "param": error.param, "code": error.code, "details": error.details}}


def _full(error: OSError, order: HubOrder) -> HoneError | None:
    if error.errno == errno.EFBIG:
        return too_large(order, "A file of it has")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UnavailableError(
            "The server's temporary disk is full. Free space there, then try again.", code="disk_full"
        )
    return None


def main(lines: Iterable[str] = sys.stdin) -> int:
    """Take the order from standard input."""
    order = HubOrder.model_validate_json("".join(lines))
    # Taken out of the environment, which the readers of the files inherit.
    token = os.environ.pop("HF_TOKEN", None)
    os.environ.pop("HUGGING_FACE_HUB_TOKEN", None)
    _limit(order)
    progress = Progress(sys.stdout)
    try:
        with open(order.out_fd, "wb", closefd=False) as out:
            done = run(order, token, progress, out)
    except HoneError as error:
        progress.tell(_failure(error), last=True)
        return 0
    except OSError as error:
        full = _full(error, order)
        if full is None:
            raise
        progress.tell(_failure(full), last=True)
        return 0
    progress.tell(progress.now())
    progress.tell({"done": done}, last=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
