"""Parquet into JSON lines, in a child process with limits: a crafted file then ends its child and nothing else.

    python -m core.parquet FILE.parquet MAX_LINE_BYTES [COLUMN ...]

writes each row as a line of JSON, with the columns that are named or all of them; without MAX_LINE_BYTES, one line with
the names of the columns. pyarrow is imported by the child alone.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from core.records import LineError

MAGIC = b"PAR1"

#: Address space of the child: pyarrow's libraries take some 400 MB of it before a row is read.
_CHILD_BYTES = 4 * 2**30
_CHILD_CPU_SECONDS = 1800
#: Rows that are in memory at once.
_BATCH = 256
#: A file may unpack to so many times its size: text packs to a fifth or a tenth, a bomb to a twenty-thousandth.
_MOST_RATIO = 50
_LEAST_ALLOWED = 64 * 2**20


def parquet_lines(chunks: Iterable[bytes], max_line_bytes: int) -> Iterator[tuple[int, "bytes | LineError"]]:
    """Each row as a line of JSON with its number, counted from 1; an error stands where the child ended."""
    with tempfile.TemporaryFile() as spool:
        for chunk in chunks:
            spool.write(chunk)
        yield from parquet_file_lines(spool, max_line_bytes)


def parquet_file_lines(
    file: IO[bytes], max_line_bytes: int, columns: Sequence[str] = ()
) -> Iterator[tuple[int, "bytes | LineError"]]:
    """As ``parquet_lines``, of an open file of this machine and, if they are named, of these columns alone."""
    from core.records import LineError, read_lines  # noqa: PLC0415 - which imports this module

    number = 0
    with tempfile.TemporaryFile() as told:
        child = _start(file, told, str(max_line_bytes), *columns)
        try:
            assert child.stdout is not None
            for number, line in read_lines(iter(lambda: child.stdout.read(2**16), b""), max_line_bytes):  # type: ignore[union-attr]
                yield number, line
            if child.wait() != 0:
                why = _reason(told)
                yield (
                    number + 1,
                    LineError(None, f"is not readable Parquet ({why})", "Write the file again.", "not_parquet"),
                )
        finally:
            child.kill()
            child.wait()
            if child.stdout is not None:
                child.stdout.close()


def parquet_columns(file: IO[bytes]) -> list[str]:
    """The names of a Parquet file's columns. Raises LineError when it can't be read."""
    from core.records import LineError  # noqa: PLC0415 - which imports this module

    with tempfile.TemporaryFile() as told:
        child = _start(file, told)
        names, _ = child.communicate()
        if child.returncode != 0:
            why = _reason(told)
            raise LineError(None, f"is not readable Parquet ({why})", "Write the file again.", "not_parquet")
    found: list[str] = json.loads(names)
    return found


def _start(file: IO[bytes], told: IO[bytes], *arguments: str) -> "subprocess.Popen[bytes]":
    """The child on an open file, which needs no name; what it says of errors goes into ``told``."""
    file.flush()
    return subprocess.Popen(  # noqa: S603 - our own command
        [sys.executable, "-m", "core.parquet", f"/dev/fd/{file.fileno()}", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=told,
        pass_fds=(file.fileno(),),
        # Its own allocators reserve address space by gigabytes.
        env=os.environ | {"ARROW_DEFAULT_MEMORY_POOL": "system", "OMP_NUM_THREADS": "1"},
    )


def _reason(told: IO[bytes]) -> str:
    told.seek(0)
    said = told.read()[-300:].decode("utf-8", "replace").strip().splitlines()
    return (said[-1] if said else "its reader was stopped: it needs too much memory or time")[:200]


def _plain(value: Any) -> Any:
    """The value without nulls: a struct's missing field is no field."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value


def _no_json(value: Any) -> Any:
    raise TypeError(f"a column holds {type(value).__name__}, which is no text, number or list")


def main(path: str, max_line_bytes: int | None, columns: Sequence[str]) -> int:
    """Write the rows; 2 with a line on standard error when the file can't be read."""
    import resource  # noqa: PLC0415 - absent on Windows, as the service is

    resource.setrlimit(resource.RLIMIT_AS, (_CHILD_BYTES, _CHILD_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (_CHILD_CPU_SECONDS, _CHILD_CPU_SECONDS))
    try:
        import pyarrow.parquet  # noqa: PLC0415 - heavy, and wanted here alone
    except ImportError:
        sys.stderr.write("the package pyarrow is not installed here\n")
        return 2
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if max_line_bytes is None:
                sys.stdout.write(json.dumps(file.schema_arrow.names))
            else:
                _write_rows(file, Path(path).stat().st_size, max_line_bytes, list(columns) or None)
        sys.stdout.flush()
    except BrokenPipeError:
        os._exit(0)  # the reader has seen enough
    except MemoryError:
        sys.stderr.write("it needs too much memory\n")
        return 2
    except Exception as error:  # pyarrow raises many types for a damaged file
        sys.stderr.write(f"{str(error).splitlines()[0] if str(error) else type(error).__name__}\n")
        return 2
    return 0


def _write_rows(file: Any, size: int, max_line_bytes: int, columns: list[str] | None) -> None:
    """Raises ValueError for a file that unpacks to far more than its size."""
    allowed = max(_LEAST_ALLOWED, _MOST_RATIO * size)
    for batch in file.iter_batches(batch_size=_BATCH, columns=columns, use_threads=False):
        for row in batch.to_pylist():
            # Cut like a line of text that is too long: the reader says so.
            text = json.dumps(_plain(row), ensure_ascii=True, default=_no_json).encode()
            sys.stdout.buffer.write(text[: max_line_bytes + 1] + b"\n")
            allowed -= len(text)
            if allowed < 0:
                raise ValueError(f"it unpacks to more than {_MOST_RATIO} times its size")


if __name__ == "__main__":
    limit = int(sys.argv[2]) if len(sys.argv) > 2 else None
    sys.exit(main(sys.argv[1], limit, sys.argv[3:]))
