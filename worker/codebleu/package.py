"""What the package ``codebleu`` 0.7.0 does to a Python text before it parses it, for the mode "compat".

It takes out comments, and strings that stand where a docstring may, by the module ``tokenize``; then it drops blank
lines. In our own mode nothing is cut out of a text: comments and docstrings are left out of its tree.
"""

import re
import tokenize
from bisect import bisect_right
from collections.abc import Callable
from io import StringIO

from .language import ERROR, Loaded
from .tree import Reading

#: What decides how a line is read; all else is copied.
_MARK = re.compile(r"[#'\"()\[\]{}\\\n]")
_STRING = re.compile(
    r'"""[^"\\]*(?:(?:\\.|"(?!""))[^"\\]*)*"""'
    r"|'''[^'\\]*(?:(?:\\.|'(?!''))[^'\\]*)*'''"
    r'|"(?!"")[^"\\\n]*(?:\\.[^"\\\n]*)*"'
    r"|'(?!'')[^'\\\n]*(?:\\.[^'\\\n]*)*'",
    re.DOTALL,
)
_PREFIX = re.compile(r"(?<!\w)[bBrRuUfF]{1,2}$")
_INDENT = re.compile(r" *")
_REST_OF_LINE = re.compile(r"[^\n]*")


class _OddError(Exception):
    """The quick reading does not know this; ``tokenize`` decides."""


def code_of(text: str) -> str:
    """The text without comments, docstrings and blank lines, read quickly: sure for a text whose tree has no error."""
    try:
        return _without_blank_lines(_read(text))
    except _OddError:
        return code_by_tokenize(text)


def code_by_tokenize(text: str) -> str:
    """The same by ``tokenize``, ten times slower; the text as it is where that fails."""
    try:
        return _without_blank_lines(_joined(text))
    except Exception:
        return text


def _joined(text: str) -> str:
    """The tokens with as many spaces between them as there are columns."""
    parts: list[str] = []
    before, row, column = tokenize.INDENT, -1, 0
    for token in tokenize.generate_tokens(StringIO(text).readline):
        (start_row, start), (end_row, end) = token.start, token.end
        if start_row > row:
            column = 0
        parts.append(" " * (start - column))
        is_string = token.type == tokenize.STRING
        if not (token.type == tokenize.COMMENT or (is_string and _is_dropped(before, start))):
            parts.append(token.string)
        before, row, column = token.type, end_row, end
    return "".join(parts)


def _is_dropped(before: int, column: int) -> bool:
    """Whether a string is taken for a docstring: at the start of a block, after a statement, or at the left margin."""
    return before in {tokenize.INDENT, tokenize.NEWLINE} or column == 0


def _without_blank_lines(text: str) -> str:
    return "\n".join([line for line in text.split("\n") if line.strip()])


def _read(text: str) -> str:  # noqa: PLR0912, PLR0915 - a scanner: one loop over the marks
    """What ``_joined`` gives, by looking only at what can matter. Raises _OddError for what it does not know."""
    if any(odd in text for odd in "\t\r\f\v\0"):
        raise _OddError
    parts: list[str] = []
    position = copied = 0  # of the text, what is read and what is in parts
    brackets = 0
    indents = [0]
    fresh = True  # whether a new statement starts on this line
    blank = False  # whether lines without code are before it
    line = 0  # where this line starts
    while position < len(text):
        if fresh:
            margin = _INDENT.match(text, position).end()  # type: ignore[union-attr]  # it matches nothing, too
            if margin == len(text) or text[margin] in "\n#":
                position = _REST_OF_LINE.match(text, margin).end()  # type: ignore[union-attr]
                parts.append(text[copied:margin])
                copied, position = position, position + 1
                line, blank = position, True
                continue
            deeper = _follow(indents, margin - line)
            fresh, after_statement, first = False, deeper or (not blank and deeper is not None), margin
            blank = False
        found = _MARK.search(text, position)
        if found is None:
            break
        position, mark = found.start(), found.group()
        if mark in "'\"":
            string = _STRING.match(text, position)
            if string is None:
                raise _OddError
            start = position
            prefix = _PREFIX.search(text, max(line, position - 3), position)
            if prefix is not None:
                start = prefix.start()
            if start == line or (start == first and after_statement):
                parts.append(text[copied:start])
                copied = string.end()
            position = string.end()
            newline = text.rfind("\n", start, position)
            line = line if newline < 0 else newline + 1
        elif mark == "#":
            parts.append(text[copied:position])
            copied = position = _REST_OF_LINE.match(text, position).end()  # type: ignore[union-attr]
        elif mark == "\n":
            position += 1
            line = position
            fresh = not brackets
        elif mark == "\\":
            position = copied = line = _continued(text, position, copied, parts)
        else:
            brackets += 1 if mark in "([{" else -1
            position += 1
    if brackets:
        raise _OddError
    parts.append(text[copied:])
    return "".join(parts)


def _follow(indents: list[int], column: int) -> bool | None:
    """Go to a statement's indentation: True for a deeper one, None for one that ends blocks, False for the same."""
    if column > indents[-1]:
        indents.append(column)
        return True
    if column == indents[-1]:
        return False
    while column < indents[-1]:
        indents.pop()
    if column != indents[-1]:
        raise _OddError
    return None


def _continued(text: str, position: int, copied: int, parts: list[str]) -> int:
    """Join a line that ends in a backslash to the next: the spaces before the backslash go, those after it stay."""
    if text[position + 1 : position + 2] != "\n":
        raise _OddError
    following = position + 2
    margin = _INDENT.match(text, following).end()  # type: ignore[union-attr]
    if margin == len(text) or text[margin] in "\n#\\":
        raise _OddError
    parts.append(text[copied:position].rstrip(" "))
    return following


def token_texts(text: str, source: bytes, tree: Reading, language: Loaded) -> list[str | None]:
    """The texts of a tree's stops as the package cuts them out: one over several lines without its line breaks.

    It takes columns, which are bytes, for characters; after a character of several bytes it cuts in the wrong place.
    A token whose text is its kind's name, a variable called ``identifier`` among them, is none.
    """
    kind_names = language.kind_names
    cut = _cutter(text, source)
    texts: list[str | None] = []
    for kind, span in zip(tree.stops, tree.spans, strict=True):
        found = cut(*span) if span is not None else None
        is_name = found is not None and found != ("ERROR" if kind == ERROR else kind_names[kind])
        texts.append(found if is_name else None)
    return texts


def _cutter(text: str, source: bytes) -> Callable[[int, int], str]:
    """What cuts bytes from and to out of a text, as the package does it."""
    if len(text) == len(source):
        return lambda start, end: text[start:end].replace("\n", "")
    lines = text.split("\n")
    offsets = [0]
    for line in source.split(b"\n"):
        offsets.append(offsets[-1] + len(line) + 1)

    def cut(start: int, end: int) -> str:
        top, bottom = bisect_right(offsets, start) - 1, bisect_right(offsets, end) - 1
        left, right = start - offsets[top], end - offsets[bottom]
        if top == bottom:
            return lines[top][left:right]
        return "".join([lines[top][left:], *lines[top + 1 : bottom], lines[bottom][:right]])

    return cut
