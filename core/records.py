"""Records out of a dataset's bytes: JSON lines, a JSON array, CSV or Parquet, told apart by their first bytes.

Every format is read as a stream, in memory that does not grow with the file, and ends in the same thing: numbered JSON
objects. What is wrong with one is a ``LineError`` in its place.
"""

import codecs
import csv
import json
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import IO, Any, Literal

from core.parquet import MAGIC, parquet_lines

FileFormat = Literal["jsonl", "json", "csv", "parquet"]
Record = dict[str, Any]

#: First cells by which a header is told from other text; a CSV has one of these as a column.
_COLUMNS = {"prompt", "completion", "instruction", "output", "messages", "chosen"}
#: Columns whose cells hold JSON; every other cell is text.
_JSON_COLUMNS = {"messages", "preferred_output", "non_preferred_output"}
#: Bytes that are looked at to tell the format: a header of a CSV is shorter.
_PEEK = 65_536


class LineError(Exception):
    """A record that can't be used: field, reason, fix, and the kind of the problem for counting."""

    def __init__(self, field: str | None, reason: str, fix: str, kind: str = "invalid_value") -> None:
        super().__init__(reason)
        self.problem = (field, reason, fix)
        self.kind = kind


def read_lines(chunks: Iterable[bytes], max_line_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Split a stream into numbered lines in bounded memory; a longer line is cut to ``max_line_bytes + 1`` bytes."""
    number, pending, skipping = 1, bytearray(), False
    for chunk in chunks:
        *complete, rest = chunk.split(b"\n")
        for part in complete:
            if not skipping:
                pending += part
            yield number, bytes(pending[: max_line_bytes + 1])
            pending.clear()
            number, skipping = number + 1, False
        if not skipping:
            pending += rest
            skipping = len(pending) > max_line_bytes
    if pending:
        yield number, bytes(pending[: max_line_bytes + 1])


def parse_line(raw: bytes, max_line_bytes: int) -> Record:
    """One line as a JSON object whose texts can be stored and tokenized. Raises LineError."""
    if len(raw) > max_line_bytes:
        raise _too_long(max_line_bytes)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(error.start) from None
    return _as_record(_parse(text))


def _parse(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise _not_json(f"{error.msg}, column {error.colno}") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise _not_json(str(error)) from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _as_record(value: Any) -> Record:
    if not isinstance(value, dict):
        reason = f"is a JSON {type(value).__name__}, not an object"
        raise LineError(None, reason, "Write one JSON object a line.", "not_an_object")
    return value


def _too_long(limit: int) -> LineError:
    return LineError(None, f"is longer than {limit:,} bytes", "Split or shorten the sample.", "too_long")


def _not_utf8(start: int) -> LineError:
    return LineError(None, f"is not UTF-8 (byte {start + 1})", "Save the file as UTF-8.", "not_utf8")


def _not_json(why: str) -> LineError:
    return LineError(None, f"is not JSON ({why})", "Write one JSON object a line.", "not_json")


def _too_deep() -> LineError:
    return LineError(None, "is nested too deeply", "Flatten the object.", "too_deep")


# --- Telling the formats apart ---------------------------------------------------------------------------------------


def open_records(
    chunks: Iterable[bytes], max_line_bytes: int, delimiter: str | None = None
) -> tuple[FileFormat, Iterator[tuple[int, Record | LineError]]]:
    """The file's format, and its records with their line (of a Parquet file, their row), counted from 1.

    ``delimiter``: the file is known to be CSV, with this between its cells, whatever its columns are called.
    """
    stream = iter(chunks)
    head = b""
    while len(head) < _PEEK and (chunk := next(stream, None)) is not None:
        head += chunk
    whole = chain([head], stream)
    told = tell_format(head) if delimiter is None else "csv"
    if told == "parquet":
        return told, _from_lines(parquet_lines(whole, max_line_bytes), max_line_bytes)
    if told == "json":
        return told, _from_array(whole, max_line_bytes)
    if told == "csv":
        return told, _from_csv(whole, max_line_bytes, delimiter)
    return told, _from_lines(read_lines(whole, max_line_bytes), max_line_bytes)


def tell_format(head: bytes) -> FileFormat:
    """The format of a file that begins with ``head``; JSON lines when it is none of the others."""
    if head.startswith(MAGIC):
        return "parquet"
    text = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if text.startswith(b"["):
        return "json"
    if not text.startswith(b"{") and _delimiter(text.split(b"\n", 1)[0].decode("utf-8", "replace")):
        return "csv"
    return "jsonl"


def _delimiter(header: str) -> str | None:
    """What separates the columns of a header that names one of ours; None when it names none."""
    for delimiter in ",;\t":
        try:
            cells = next(csv.reader([header], delimiter=delimiter), [])
        except csv.Error:  # such as a NUL
            return None
        if len(cells) > 1 and _COLUMNS & {cell.strip() for cell in cells}:
            return delimiter
    return "," if header.strip().strip('"') in _COLUMNS else None


# --- Each format -----------------------------------------------------------------------------------------------------


def _from_lines(
    lines: Iterable[tuple[int, bytes | LineError]], max_line_bytes: int
) -> Iterator[tuple[int, Record | LineError]]:
    """Records of lines; a blank one is none."""
    for number, raw in lines:
        if isinstance(raw, LineError):
            yield number, raw
        elif raw.strip():
            try:
                yield number, parse_line(raw, max_line_bytes)
            except LineError as error:
                yield number, error


class _Text:
    """A stream as text, of which only what is not yet consumed is held."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._ended = False
        self.text = ""
        self.place = 0
        self.line = 1

    def more(self) -> bool:
        """Read on; False at the end. Raises LineError."""
        if self._ended:
            return False
        chunk = next(self._chunks, None)
        self._ended = chunk is None
        try:
            fresh = self._decoder.decode(chunk or b"", self._ended)
        except UnicodeDecodeError as error:
            before = error.object[: error.start]
            self.line += self.text.count("\n", self.place) + before.count(b"\n")
            raise _not_utf8(error.start - before.rfind(b"\n") - 1) from None
        self.text = self.text[self.place :] + fresh
        self.place = 0
        return not self._ended

    def skip(self, characters: str) -> str:
        """Go on behind blanks and ``characters``; what stands there, "" at the end."""
        while True:
            while self.place < len(self.text) and self.text[self.place] in characters:
                self.to(self.place + 1)
            if self.place < len(self.text) or not self.more():
                return self.text[self.place : self.place + 1]

    def to(self, place: int) -> None:
        """Consume up to ``place``, counting lines."""
        self.line += self.text.count("\n", self.place, place)
        self.place = place


_BLANK = " \t\r\n"


def _from_array(chunks: Iterable[bytes], max_line_bytes: int) -> Iterator[tuple[int, Record | LineError]]:
    """Elements of an array, by the line where each begins. Behind one that can't be parsed nothing can be told."""
    source = _Text(chunks)
    try:
        source.skip(_BLANK + "\ufeff")
        source.to(source.place + 1)  # the bracket
        first = True
        while (mark := source.skip(_BLANK)) != "]":
            if not first:
                if mark != ",":
                    raise _not_json("a comma or the end of the array is missing")
                source.to(source.place + 1)
                source.skip(_BLANK)
            first = False
            line = source.line
            value = _element(source, max_line_bytes)
            try:
                yield line, _as_record(value)
            except LineError as error:
                yield line, error
        source.to(source.place + 1)
        if source.skip(_BLANK):
            raise _not_json("something follows the array")
    except LineError as error:
        yield source.line, error


def _element(source: _Text, max_bytes: int) -> Any:
    """The next element; more of the stream is read as long as it is not whole."""
    decoder = json.JSONDecoder(parse_constant=_refuse_constant)
    while True:
        try:
            value, end = decoder.raw_decode(source.text, source.place)
            whole = end < len(source.text)  # a number or a word at the very end may go on
        except RecursionError:
            raise _too_deep() from None
        except json.JSONDecodeError as error:
            whole, failed = False, _not_json(error.msg)
        except ValueError as error:
            raise _not_json(str(error)) from None
        else:
            failed = _not_json("the array has no end")
            if whole:
                if end - source.place > max_bytes:
                    raise _too_long(max_bytes)
                source.to(end)
                return value
        if len(source.text) - source.place > max_bytes:
            raise failed if _broken_early(source, max_bytes) else _too_long(max_bytes)
        if not source.more():
            raise failed


def _broken_early(source: _Text, max_bytes: int) -> bool:
    """Whether an element that can't be parsed is broken well before the end of what was read."""
    try:
        json.JSONDecoder().raw_decode(source.text, source.place)
    except json.JSONDecodeError as error:
        return error.pos - source.place < max_bytes and not error.msg.startswith("Unterminated string")
    except (RecursionError, ValueError):
        return True
    return False


def _from_csv(
    chunks: Iterable[bytes], max_line_bytes: int, delimiter: str | None
) -> Iterator[tuple[int, Record | LineError]]:
    """Rows below a header; empty cells are fields that are not there."""
    if csv.field_size_limit() < sys.maxsize:
        csv.field_size_limit(sys.maxsize)  # of the whole process; rows are bounded below, in bytes
    line = 1
    try:
        rows = _CsvRows(chunks, max_line_bytes, delimiter)
        _, header = next(rows, (1, []))
        names = [cell.strip() for cell in header]
        for line, row in rows:
            if row:
                try:
                    yield line, _row(names, row)
                except LineError as error:
                    yield line, error
    except _AtLineError as error:
        yield error.line, error


class _AtLineError(LineError):
    """A LineError that ends the reading, and its line."""

    def __init__(self, line: int, error: LineError) -> None:
        super().__init__(*error.problem, error.kind)
        self.line = line


class _CsvRows:
    """Rows with the line where each begins; [] for a blank one. Raises _AtLineError."""

    def __init__(self, chunks: Iterable[bytes], max_line_bytes: int, delimiter: str | None) -> None:
        self._limit = max_line_bytes
        self._lines = self._checked(chunks)
        #: Lines taken so far, and the bytes of the row at hand.
        self._taken = 0
        self._bytes = 0
        self._begins = 1
        first = next((line for line in self._lines if line.strip()), "")
        self._begins = max(1, self._taken)
        # Strict: a quote that is never closed is an error, not the rest of the file as one cell.
        told = delimiter or _delimiter(first) or ","
        self._rows = csv.reader(chain([first], self._lines), delimiter=told, strict=True)

    def __iter__(self) -> "_CsvRows":
        return self

    def __next__(self) -> tuple[int, list[str]]:
        begins = self._begins
        try:
            row = next(self._rows)
        except csv.Error as error:
            told = LineError(None, f"is not CSV ({error})", "Quote cells and close the quotes.", "not_csv")
            raise _AtLineError(begins, told) from None
        self._begins, self._bytes = self._taken + 1, 0
        return begins, row

    def _checked(self, chunks: Iterable[bytes]) -> Iterator[str]:
        for number, raw in read_lines(chunks, self._limit):
            self._taken = number
            self._bytes += len(raw) + 1
            if self._bytes > self._limit + 1:
                raise _AtLineError(self._begins, _too_long(self._limit))
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise _AtLineError(number, _not_utf8(error.start)) from None
            yield text + "\n"


def _row(header: list[str], row: list[str]) -> Record:
    if len(row) > len(header):
        raise LineError(
            None,
            f"has {len(row)} cells, the header {len(header)}",
            "Quote cells that hold the separator.",
            "too_many_cells",
        )
    cells = {name: cell for name, cell in zip(header, row, strict=False) if cell.strip()}
    return {name: _cell(name, cell) for name, cell in cells.items()}


def _cell(name: str, cell: str) -> Any:
    if name not in _JSON_COLUMNS:
        return cell
    try:
        return _parse(cell)
    except LineError as error:
        raise LineError(name, error.problem[1], "Write the cell as a JSON list.", error.kind) from None


def from_file(file: IO[bytes], size: int = 2**20) -> Iterator[bytes]:
    """A binary file's bytes in pieces, from its start."""
    file.seek(0)
    return iter(lambda: file.read(size), b"")
