"""A dataset's rows as lines of a file: which columns are taken, and each row checked as an upload's lines are."""

import gzip
import json
import zlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict
from itertools import chain
from typing import IO, Any

from core.dataset import DatasetReport, fields_among, problem_at, read_record, require_item, summary
from core.errors import DatasetError, InvalidRequestError, TooLargeError
from core.hub_layout import Kind
from core.hub_order import HubOrder
from core.parquet import parquet_columns, parquet_file_lines
from core.records import LineError, Record, from_file, open_records, parse_line

#: Hone's field -> the dataset's column; empty: every column is taken.
Fields = dict[str, str]
Rows = Iterator[tuple[int, Record | LineError]]

#: Packed text may hold so many times its size, as in ``core.parquet``.
_MOST_RATIO = 50
_LEAST_ALLOWED = 64 * 2**20
#: Kinds of problems after which the rest of a file can't be read, or all of it.
_ENDS_LINES = {"not_parquet"}
_LISTED = 60


class Lines:
    """The lines of a file in the making, and what their check has found."""

    def __init__(self, order: HubOrder, out: IO[bytes]) -> None:
        self._order = order
        self._out = out
        self._fields: Fields | None = None
        #: What stands in ``out``.
        self._written = DatasetReport()
        #: What was refused, by its row.
        self._refused = DatasetReport()
        self._longest = -1
        self.rows = 0
        self.bytes = 0

    def add_file(self, file: IO[bytes], kind: Kind, packed: bool) -> None:
        """Take a file's rows. Raises InvalidRequestError, DatasetError and TooLargeError."""
        if kind == "parquet":
            self._add_parquet(file)
            return
        content = _unpacked(file) if packed else from_file(file)
        delimiter = {"csv": ",", "tsv": "\t"}.get(kind)
        told, rows = open_records(content, self._order.max_line_bytes, delimiter)
        self._add(rows, each_alone=told == "jsonl")

    def _add_parquet(self, file: IO[bytes]) -> None:
        try:
            columns = parquet_columns(file)
        except LineError as error:
            raise self._unreadable(error) from None
        limit = self._order.max_line_bytes
        fields = self._choose(columns)
        wanted = [column for column in columns if column in fields.values()]
        lines = parquet_file_lines(file, limit, wanted)
        self._add(((number, _parsed(line, limit)) for number, line in lines), each_alone=True)

    def _add(self, rows: Rows, *, each_alone: bool) -> None:
        """``each_alone``: a row that can't be read says nothing of those behind it."""
        first = next(rows, None)
        if first is None:
            return
        if self._fields is None and not isinstance(first[1], LineError):
            self._choose(first[1])
        before = self.rows
        for number, row in chain([first], rows):
            if isinstance(row, LineError) and not (each_alone and row.kind not in _ENDS_LINES):
                raise self._unreadable(row, before + number)
            self.rows += 1
            try:
                if isinstance(row, LineError):
                    raise row
                self._write(self._taken(row))
            except LineError as error:
                self._refused.add(problem_at(self.rows, error))

    def _choose(self, columns: Collection[str]) -> Fields:
        """The columns to take, of which the first file decides."""
        if self._fields is None:
            self._fields = fields_of(self._order, columns)
        return self._fields

    def _taken(self, row: Record) -> Record:
        """A row under Hone's names, with nothing else in it."""
        fields = self._choose(row)
        found = {field: row[column] for field, column in fields.items() if column in row} if fields else row
        return {"item": found} if self._order.purpose == "evals" and "item" not in fields else found

    def _write(self, record: Record) -> None:
        if self._order.purpose == "evals":
            require_item(record)
            characters = None
        else:
            sample = read_record(record, self._written)
            characters = sum(len(message.content) for message in sample.messages)
        line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
        if len(line) > self._order.max_line_bytes:
            why = f"is longer than {self._order.max_line_bytes:,} bytes"
            raise LineError(None, why, "Split or shorten the sample.", "too_long")
        if self.bytes + len(line) > self._order.max_file_bytes:
            raise too_large(self._order, "Its rows are")
        self._out.write(line)
        self.bytes += len(line)
        self._written.samples += 1
        if characters is not None:
            self._written.characters += characters
            if characters > self._longest:
                self._longest, self._written.longest_line = characters, self._written.samples

    def finish(self) -> dict[str, Any]:
        """The report of what was written. Raises DatasetError for rows that may not be left out, or without any."""
        refused, order = self._refused, self._order
        if refused.problem_count and (not order.skip_bad_rows or not self._written.samples):
            count = "1 row" if refused.problem_count == 1 else f"{refused.problem_count:,} rows"
            first = str(refused.problems[0]).replace("line", "row", 1)
            cure = "" if order.skip_bad_rows else " Set skip_bad_rows to leave them out, or mend the dataset."
            error = DatasetError(
                f"{count} of {self.rows:,} in '{order.dataset}', split '{order.split}', can't be used; the first is "
                f"{first}{cure}",
                param="dataset",
                code="invalid_file_format",
            )
            refused.format, refused.samples = self._written.format, self._written.samples
            error.details = {"report": summary(refused)}
            raise error
        if not self._written.samples:
            raise DatasetError(
                f"The split '{order.split}' of '{order.dataset}' has no rows.", param="split", code="empty_file"
            )
        self._written.format = "items" if order.purpose == "evals" else self._written.format
        return asdict(self._written)

    @property
    def skipped(self) -> int:
        """Rows that were left out."""
        return self._refused.problem_count

    def _unreadable(self, error: LineError, row: int | None = None) -> DatasetError:
        problem = problem_at(row or 1, error)
        where = f"row {row:,}: it " if row else "a file "
        return DatasetError(
            f"The dataset '{self._order.dataset}' can't be read: {where}{problem.reason}.",
            param="dataset",
            code="invalid_file_format",
        )


def fields_of(order: HubOrder, columns: Collection[str]) -> Fields:
    """Which columns become which fields. Raises InvalidRequestError, telling which columns there are."""
    if missing := sorted(set(order.columns.values()) - set(columns)):
        raise InvalidRequestError(
            f"The dataset '{order.dataset}' has no column '{missing[0]}', but: {_listed(columns)}.",
            param="columns",
            code="column_not_found",
        )
    if order.purpose == "evals":
        return dict(order.columns) or ({"item": "item"} if "item" in columns else {})
    names = fields_among({*columns, *order.columns}, order.columns)
    if not names:
        raise InvalidRequestError(
            f"The dataset '{order.dataset}' has no columns that Hone knows, but: {_listed(columns)}. Known are "
            "messages; prompt and completion; instruction, input and output; input, preferred_output and "
            "non_preferred_output; prompt, chosen and rejected. Say which is which with 'columns', such as "
            '{"prompt": "question", "completion": "answer"}.',
            param="columns",
            code="no_known_columns",
        )
    return {name: order.columns.get(name, name) for name in names}


def too_large(order: HubOrder, what: str) -> TooLargeError:
    """What is told of a split over the limit of uploads."""
    return TooLargeError(
        f"The split '{order.split}' of '{order.dataset}' is too large. {what} more than {order.max_file_bytes:,} "
        "bytes, this server's limit for files. Choose a smaller split or configuration.",
        param="split",
        code="file_too_large",
    )


def _listed(columns: Iterable[str]) -> str:
    names = [name[:80] for name in columns]
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return (", ".join(names[:_LISTED]) or "none") + more


def _parsed(line: bytes | LineError, max_line_bytes: int) -> Record | LineError:
    if isinstance(line, LineError):
        return line
    try:
        return parse_line(line, max_line_bytes)
    except LineError as error:
        return error


def _unpacked(file: IO[bytes]) -> Iterator[bytes]:
    """A gzip file's content, piece by piece. Raises DatasetError for a damaged one, and for a bomb."""
    most, unpacked = max(_LEAST_ALLOWED, _MOST_RATIO * file.seek(0, 2)), 0
    file.seek(0)
    try:
        with gzip.GzipFile(fileobj=file) as content:
            while piece := content.read(2**20):
                unpacked += len(piece)
                if unpacked > most:
                    raise DatasetError(
                        "A file of the dataset unpacks to far more than its size.", code="file_too_large"
                    )
                yield piece
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(
            f"A file of the dataset is not readable gzip ({error}).", param="dataset", code="invalid_file_format"
        ) from None
