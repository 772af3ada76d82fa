"""What a text may cost: in things, not in seconds, so that the same text gets the same answer on any machine."""

from dataclasses import dataclass


class RefusedError(Exception):
    """A text, or a pair, that goes over a limit; the message is the reason."""


@dataclass(frozen=True)
class Limits:
    """The most that one text may have, and the most that one pair may take.

    A text at the limits takes about a second. Of the 5,628 functions of CPython 3.11's standard library, none has more
    than 12,000 bytes, 4,000 nodes or 30 levels.
    """

    #: Bytes of UTF-8 in a text.
    bytes: int = 100_000
    #: Nodes of a parse tree; a token is one, too. A byte makes 1.5 nodes at most.
    nodes: int = 150_000
    #: Levels of a parse tree; a sum of n terms in one line has n.
    nesting: int = 10_000
    #: Steps of following the data, each about 0.3 microseconds. Ordinary code takes some 3 a token; chains of
    #: assignments and deeply nested branches can take the square of their length.
    steps: int = 2_000_000


def encoded(text: str, limits: Limits, what: str) -> bytes:
    """The text as UTF-8. Raises RefusedError for one that has no UTF-8, or too much of it; ``what`` names it."""
    if len(text) > limits.bytes:
        raise RefusedError(f"{what} is longer than {limits.bytes:,} bytes")
    try:
        found = text.encode()
    except UnicodeEncodeError:
        raise RefusedError(f"{what} contains half of a surrogate pair") from None
    if len(found) > limits.bytes:
        raise RefusedError(f"{what} is longer than {limits.bytes:,} bytes")
    if b"\0" in found:
        raise RefusedError(f"{what} contains the character NUL")
    return found
