"""Datasets: records into samples, each problem named by its line and field. ``core.records`` reads the file.

Four formats, told apart by their keys; one file has one format:

- chat: ``{"messages": [{"role", "content", "weight"?}, …]}``, ending with the assistant's answer;
- completion: ``{"prompt", "completion"}``;
- instruction: ``{"instruction", "input"?, "output"}``;
- preference (for DPO): ``{"input": {"messages": […]}, "preferred_output": […], "non_preferred_output": […]}``, the
  outputs each one message of the assistant; or, as TRL has them, ``{"prompt"?, "chosen", "rejected"}``: texts, or lists
  of messages, of which the answers' may begin with the prompt's.

The API checks an upload with this module and the worker reads it with the same, so what was accepted can be read.
"""

import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from core.errors import DatasetError
from core.records import LineError as _LineError
from core.records import open_records, parse_line, read_lines

Role = Literal["system", "user", "assistant"]
Format = Literal["chat", "completion", "instruction", "preference"]

#: Formats with the keys that tell them, the required ones first; preferences are written in two ways.
_KEYS: tuple[tuple[Format, tuple[str, ...], tuple[str, ...]], ...] = (
    ("chat", ("messages",), ()),
    ("preference", ("preferred_output", "non_preferred_output", "input"), ()),
    ("preference", ("chosen", "rejected"), ("prompt",)),
    ("completion", ("prompt", "completion"), ()),
    ("instruction", ("instruction", "output"), ("input",)),
)
#: Every field that a format has.
FIELDS = tuple(dict.fromkeys(key for _, required, optional in _KEYS for key in (*required, *optional)))
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_SHOWN_PROBLEMS = 20


@dataclass(frozen=True)
class Message:
    """One turn. ``trained``: its tokens count in the loss. ``input``: an instruction's second part, if it has one."""

    role: Role
    content: str
    trained: bool = False
    input: str | None = None


@dataclass(frozen=True)
class Sample:
    """One training sample: turns of which the last is the assistant's."""

    messages: tuple[Message, ...]
    format: Format
    #: Of a preference: the answer that the last message is preferred to.
    rejected: Message | None = None


@dataclass(frozen=True)
class Problem:
    """What is wrong with one line (1-based), and what to do about it."""

    line: int
    field: str | None
    reason: str
    fix: str
    #: A word for counting: the same fault in many lines has one kind.
    kind: str = "invalid_value"

    def __str__(self) -> str:
        where = f"line {self.line}" + (f", field '{self.field}'" if self.field else "")
        return f"{where}: {self.reason}. {self.fix}"


@dataclass
class DatasetReport:
    """What a check found. ``problems`` holds the first 20 of ``problem_count``, ``kinds`` counts all by kind."""

    format: str | None = None
    file_format: str = "jsonl"
    samples: int = 0
    characters: int = 0
    longest_line: int | None = None
    problem_count: int = 0
    problems: list[Problem] = field(default_factory=list)
    kinds: dict[str, int] = field(default_factory=dict)

    def add(self, problem: Problem) -> None:
        """Count a problem and keep it when it is among the first."""
        self.problem_count += 1
        self.kinds[problem.kind] = self.kinds.get(problem.kind, 0) + 1
        if len(self.problems) < _SHOWN_PROBLEMS:
            self.problems.append(problem)


def _text(record: dict[str, Any], key: str, where: str, *, empty_ok: bool = False) -> str:
    """A field that must be text: no lone surrogates, no NUL, not blank."""
    value = record.get(key)
    if not isinstance(value, str):
        reason = "is missing" if key not in record else f"is {_json_type(value)}, not text"
        kind = "wrong_type" if key in record else "missing_field"
        raise _LineError(where, reason, f"Give '{key}' as a string.", kind)
    if not empty_ok and not value.strip():
        raise _LineError(where, "is empty", "Fill it in or remove the line.", "empty_field")
    if "\0" in value:
        raise _LineError(where, "contains the character NUL", "Remove \\u0000 from the text.", "nul")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        reason = "contains half of a surrogate pair"
        raise _LineError(where, reason, "Write the whole character.", "surrogate") from None
    return value


def _json_type(value: Any) -> str:
    names = {bool: "true/false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), "text")


def _detect(record: dict[str, Any]) -> Format:
    for name, required, _ in _KEYS:
        if required[0] in record:
            return name
    raise _LineError(
        None,
        f"has none of the known formats (keys: {', '.join(key[:40] for key in sorted(record)[:8]) or 'none'})",
        "Use 'messages', or 'prompt' and 'completion', or 'instruction', 'input' and 'output'; for DPO 'input', "
        "'preferred_output' and 'non_preferred_output', or 'prompt', 'chosen' and 'rejected'.",
        "unknown_format",
    )


def fields_among(columns: Collection[str], named: Collection[str] = ()) -> tuple[str, ...]:
    """The fields of the first format whose required ones are among ``columns``; none when there is no such format.

    ``named``: fields that the format must have; optional ones are told only if they are named, or nothing is.
    """
    for _, required, optional in _KEYS:
        if all(key in columns for key in required) and all(key in (*required, *optional) for key in named):
            return (*required, *(key for key in optional if not named or key in named))
    return ()


def to_sample(record: dict[str, Any], format: Format) -> Sample:
    """A checked record as a sample."""
    if format == "chat":
        return Sample(_chat(record), "chat")
    if format == "preference":
        return _preference(record) if "preferred_output" in record else _comparison(record)
    if format == "completion":
        prompt = Message("user", _text(record, "prompt", "prompt"))
        return Sample((prompt, Message("assistant", _text(record, "completion", "completion"), True)), "completion")
    extra = _text(record, "input", "input", empty_ok=True) if record.get("input") is not None else ""
    question = Message("user", _text(record, "instruction", "instruction"), input=extra.strip() or None)
    return Sample((question, Message("assistant", _text(record, "output", "output"), True)), "instruction")


def _chat(record: dict[str, Any]) -> tuple[Message, ...]:
    turns = record["messages"]
    if not isinstance(turns, list) or not turns:
        raise _LineError("messages", "is not a list of messages", "Give at least a user's and an assistant's turn.")
    messages = tuple(_turn(turn, f"messages[{index}]") for index, turn in enumerate(turns))
    if messages[-1].role != "assistant":
        raise _LineError(
            f"messages[{len(messages) - 1}].role",
            f"the last message is the {messages[-1].role}'s, so there is no completion",
            "End with the assistant's answer.",
        )
    if not any(message.role == "user" for message in messages):
        raise _LineError("messages", "has no user's message", "Put the question before the answer.")
    if not any(message.trained for message in messages):
        raise _LineError("messages", "gives every answer the weight 0", "Give at least one answer the weight 1.")
    return messages


def _preference(record: dict[str, Any]) -> Sample:
    asked = record["input"]
    if not isinstance(asked, dict):
        raise _LineError("input", f"is {_json_type(asked)}, not an object", 'Write {"messages": […]}.', "wrong_type")
    if asked.get("tools"):
        raise _LineError("input.tools", "has tools", "Remove them: calls of tools are not trained here.")
    turns = asked.get("messages")
    if not isinstance(turns, list) or not turns:
        raise _LineError("input.messages", "is not a list of messages", "Give at least a user's turn.")
    prompt = [replace(_turn(turn, f"input.messages[{at}]"), trained=False) for at, turn in enumerate(turns)]
    if prompt[-1].role != "user":
        where, reason = f"input.messages[{len(prompt) - 1}].role", f"the last message is the {prompt[-1].role}'s"
        raise _LineError(where, reason, "End with the user's message, which both outputs answer.")
    preferred, rejected = (_output(record, key) for key in ("preferred_output", "non_preferred_output"))
    if preferred.content == rejected.content:
        raise _LineError(
            "non_preferred_output", "is the same as preferred_output", "Remove the line, or give another answer."
        )
    return Sample((*prompt, preferred), "preference", rejected)


def _comparison(record: dict[str, Any]) -> Sample:
    """A preference as TRL writes it: two conversations that differ in the last message."""
    chosen, rejected = (_conversation(record, key, "assistant") for key in ("chosen", "rejected"))
    if chosen[:-1] != rejected[:-1]:
        reason = "continues another conversation than chosen"
        raise _LineError("rejected", reason, "Let the two differ in their last message alone.")
    if chosen[-1].content == rejected[-1].content:
        raise _LineError("rejected", "is the same as chosen", "Remove the line, or give another answer.")
    prompt = chosen[:-1]
    first = next((turn.role for turn in prompt if turn.role != "system"), "assistant")
    if first == "assistant":  # the answers go on where the prompt ends
        prompt = (*_conversation(record, "prompt", "user"), *prompt)
    if prompt[-1].role != "user":
        where = f"chosen[{len(chosen) - 2}].role"
        raise _LineError(where, f"is the {prompt[-1].role}'s", "Put the user's message before the answer.")
    return Sample((*prompt, chosen[-1]), "preference", rejected[-1])


def _conversation(record: dict[str, Any], key: str, last: Literal["user", "assistant"]) -> tuple[Message, ...]:
    """A text as the one message of ``last``, or a list of messages that ends with one; only an answer is trained."""
    turns = record.get(key)
    if not isinstance(turns, list):
        return (Message(last, _text(record, key, key), trained=last == "assistant"),)
    if not turns:
        raise _LineError(key, "is a list without messages", f"End with the {last}'s message.")
    *before, end = [_turn(turn, f"{key}[{at}]") for at, turn in enumerate(turns)]
    if end.role != last:
        raise _LineError(f"{key}[{len(before)}].role", f"is the {end.role}'s", f"End with the {last}'s message.")
    return (*(replace(one, trained=False) for one in before), replace(end, trained=last == "assistant"))


def _output(record: dict[str, Any], key: str) -> Message:
    turns = record[key]
    if not isinstance(turns, list) or len(turns) != 1:
        raise _LineError(key, "is not a list of one message", "Give the assistant's answer.")
    message = replace(_turn(turns[0], f"{key}[0]"), trained=True)
    if message.role != "assistant":
        raise _LineError(f"{key}[0].role", f"is the {message.role}'s", "Give the assistant's answer.")
    return message


def _turn(turn: Any, where: str) -> Message:
    if not isinstance(turn, dict):
        raise _LineError(where, f"is {_json_type(turn)}, not an object", "Give role and content.")
    role = turn.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise _LineError(f"{where}.role", f"is {role!r:.40}", f"Use one of {', '.join(_ROLES)}.")
    weight = turn.get("weight", 1)
    if weight not in (0, 1) or isinstance(weight, bool):
        raise _LineError(f"{where}.weight", f"is {weight!r:.40}", "Use 0 or 1.")
    content = _text(turn, "content", f"{where}.content", empty_ok=role != "assistant")
    known: Role = _ROLES[role]  # type: ignore[assignment]  # the values of _ROLES are Role's members
    return Message(known, content, trained=known == "assistant" and weight == 1)


def check_training(chunks: Iterable[bytes], max_line_bytes: int) -> DatasetReport:
    """Read a whole training file and report every problem, in memory that does not grow with the file."""
    report = DatasetReport()
    longest = -1
    for number, found in numbered_samples(chunks, max_line_bytes, report):
        if isinstance(found, Problem):
            report.add(found)
            continue
        report.samples += 1
        characters = sum(len(message.content) for message in found.messages)
        report.characters += characters
        if characters > longest:
            longest, report.longest_line = characters, number
    return report


def numbered_samples(
    chunks: Iterable[bytes], max_line_bytes: int, report: DatasetReport
) -> Iterator[tuple[int, Sample | Problem]]:
    """Each line that is not blank: its number, and its sample or its problem. The first sets the report's format."""
    report.file_format, records = open_records(chunks, max_line_bytes)
    for number, record in records:
        found: Sample | Problem
        try:
            if isinstance(record, _LineError):
                raise record
            found = read_record(record, report)
        except _LineError as error:
            found = problem_at(number, error)
        yield number, found


def read_record(record: dict[str, Any], report: DatasetReport) -> Sample:
    """A record as a sample; the first one sets the report's format. Raises LineError."""
    _require_format(report, record)
    return to_sample(record, report.format)  # type: ignore[arg-type]  # set by _require_format


def problem_at(line: int, error: _LineError) -> Problem:
    """The problem of a line, in words that can be stored and sent: keys of a record may hold anything."""
    field, reason, fix = error.problem
    return Problem(line, None if field is None else _printable(field), _printable(reason), fix, error.kind)


def _printable(text: str) -> str:
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text[:500])


def _require_format(report: DatasetReport, record: dict[str, Any]) -> None:
    found = report.format or _detect(record)
    ways = [required for name, required, _ in _KEYS if name == found]
    missing = [key for key in next((way for way in ways if way[0] in record), ways[0]) if key not in record]
    if missing:
        fix = f"This file's format is '{found}': every line needs it."
        raise _LineError(missing[0], "is missing", fix, "missing_field")
    report.format = found


def check_items(chunks: Iterable[bytes], max_line_bytes: int) -> DatasetReport:
    """Read a whole evaluation file: every line is ``{"item": {…}}``."""
    report = DatasetReport(format="items")
    for number, raw in read_lines(chunks, max_line_bytes):
        if not raw.strip():
            continue
        try:
            require_item(parse_line(raw, max_line_bytes))
        except _LineError as error:
            report.add(problem_at(number, error))
            continue
        report.samples += 1
    return report


def require_item(record: dict[str, Any]) -> None:
    """Raise LineError unless a record is ``{"item": {…}}`` with texts that can be stored."""
    item = record.get("item")
    if not isinstance(item, dict):
        raise _LineError("item", f"is {_json_type(item)}, not an object", 'Write {"item": {…}} on each line.')
    _storable(item, "item")


def _storable(item: dict[str, Any], where: str) -> None:
    """Every text directly in an item can be stored; anything nested is checked as JSON text."""
    for key, value in item.items():
        if isinstance(value, str):
            _text(item, key, f"{where}.{key}"[:120], empty_ok=True)
    try:
        encoded = json.dumps(item, ensure_ascii=False).encode("utf-8")
    except (UnicodeEncodeError, RecursionError):
        raise _LineError(where, "contains text that can't be stored", "Remove lone surrogates.") from None
    if b"\\u0000" in encoded:
        raise _LineError(where, "contains the character NUL", "Remove \\u0000 from the text.")


def require_usable(report: DatasetReport, filename: str) -> None:
    """Raise DatasetError, naming the first problem, unless every line of the file can be used.

    The error's ``details`` hold the report: the problems by kind, and the first 20.
    """
    if report.problem_count:
        more = f" ({report.problem_count - 1} more)" if report.problem_count > 1 else ""
        error = DatasetError(f"{filename}, {report.problems[0]}{more}", param="file", code="invalid_file_format")
    elif not report.samples:
        error = DatasetError(
            f"{filename} has no samples. Write one JSON object a line.", param="file", code="empty_file"
        )
    else:
        return
    error.details = {"report": summary(report)}
    raise error


def summary(report: DatasetReport) -> dict[str, Any]:
    """A check's result as it goes onto the wire."""
    kinds = sorted(report.kinds.items(), key=lambda pair: (-pair[1], pair[0]))
    return {
        "file_format": report.file_format,
        "format": report.format,
        "samples": report.samples,
        "characters": report.characters,
        "problems": {
            "count": report.problem_count,
            "kinds": [{"kind": kind, "count": count} for kind, count in kinds],
            "first": [asdict(problem) for problem in report.problems],
        },
    }


def read_samples(chunks: Iterable[bytes], max_line_bytes: int) -> Iterator[Sample]:
    """The samples of a file that was checked. Raises DatasetError at the first line that can't be used."""
    for _, found in numbered_samples(chunks, max_line_bytes, DatasetReport()):
        if isinstance(found, Problem):
            raise DatasetError(str(found), code="invalid_file_format")
        yield found


def read_items(chunks: Iterable[bytes], max_line_bytes: int) -> Iterator[dict[str, Any]]:
    """The ``item`` objects of an evaluation file that was checked. Raises DatasetError as above."""
    for _, record in read_item_lines(chunks, max_line_bytes):
        yield record["item"]


def read_item_lines(chunks: Iterable[bytes], max_line_bytes: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each line of an evaluation file that was checked: its number, and all of it. Raises DatasetError as above."""
    for number, raw in read_lines(chunks, max_line_bytes):
        if not raw.strip():
            continue
        try:
            record = parse_line(raw, max_line_bytes)
        except _LineError as error:
            raise DatasetError(f"line {number}: {error}", code="invalid_file_format") from None
        if "item" not in record:
            raise DatasetError(f"line {number}: has no 'item'", code="invalid_file_format")
        yield number, record
