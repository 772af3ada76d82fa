"""One answer of a model, and the code in it: its fenced block, and whether that block is closed already."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "fence", "length"]


@dataclass(frozen=True)
class Answer:
    """An answer's text, without special tokens; ``tokens`` counts the end token if there is one.

    ``finish_reason``: "stop" at an end token, "fence" behind its closed code block, "length" at the limit.
    """

    text: str
    tokens: int
    finish_reason: FinishReason


_FENCE = re.compile(r"(?P<indent>[ \t]*)(?P<fence>`{3,}|~{3,})(?P<info>[^`]*)$")
#: What models write behind a fence, where it is not the language's name alone.
_TAGS = {
    "python": ("python", "py", "python3"),
    "javascript": ("javascript", "js", "jsx"),
    "typescript": ("typescript", "ts", "tsx"),
    "go": ("go", "golang"),
    "cpp": ("cpp", "c++"),
    "rust": ("rust", "rs"),
    "ruby": ("ruby", "rb"),
    "c_sharp": ("c_sharp", "csharp", "c#", "cs"),
}


def extract_code(text: str, lang: str = "python") -> str:
    """The code in an answer: its first fenced block that is untagged or ``lang``'s, else its first block, else all.

    A block that was not closed takes the rest: answers are cut at ``max_tokens``.
    """
    blocks = list(_fenced_blocks(text))
    if not blocks:
        return text
    return next((code for tag, code, _ in blocks if _fits(tag, lang)), blocks[0][1])


def code_is_complete(text: str, lang: str = "python") -> bool:
    """Whether a block that ``extract_code`` would take is closed by a whole line: what follows changes nothing."""
    return next((closed for tag, _, closed in _fenced_blocks(text) if _fits(tag, lang)), False)


def _fits(tag: str, lang: str) -> bool:
    return tag in ("", *_TAGS.get(lang, (lang,)))


def _fenced_blocks(text: str) -> Iterator[tuple[str, str, bool]]:
    """Each fenced block: its tag (lower case), its content, and whether a line that has ended closes it."""
    lines = iter(text.splitlines(keepends=True))
    for line in lines:
        opening = _FENCE.match(line.rstrip("\r\n"))
        if opening is None:
            continue
        content, ended = [], False
        for inner in lines:
            before, closed = _before_closing(inner, opening["fence"])
            content.append(before.removeprefix(opening["indent"]))
            if closed:
                ended = inner.splitlines()[0] != inner
                break
        yield opening["info"].strip().partition(" ")[0].lower(), "".join(content), ended


def _before_closing(line: str, fence: str) -> tuple[str, bool]:
    """What a line has of the block, and whether it closes it: by a fence of its own or, as models do, at its end."""
    bare = line.rstrip()
    if not bare.endswith(fence):
        return line, False
    before = bare.rstrip(fence[0])
    return (before + "\n" if before.strip() else ""), True
