"""What one text is, before it is compared: its words, its subtrees and its dataflow."""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from tree_sitter import Tree

from . import package
from .dataflow import Flow, Key, NoFlowError, anonymous
from .language import COMMENT, Loaded
from .limits import Limits, encoded
from .tree import Numbers, Reading, read

State = Literal["ok", "empty", "unparsable"]


class Shared:
    """Numbers that two texts have in common when they are the same: of subtrees, and of lists of sources."""

    def __init__(self) -> None:
        self.subtrees: Numbers = {}
        self.sources: dict[tuple[int, ...], int] = {}


@dataclass(frozen=True, slots=True)
class Analysis:
    """One text."""

    state: State
    words: list[str]
    #: How often each subtree, and each edge of the dataflow, is in it.
    subtrees: Counter[int]
    edges: Counter[Key]


def analyse(text: str, language: Loaded, limits: Limits, shared: Shared, what: str) -> Analysis:
    """A text by our own rules. Raises RefusedError; ``what`` names the text in it."""
    source = encoded(text, limits, what)
    code, opening = text, language.table.opening
    if opening and opening.strip() not in text:
        code, source = opening + text, opening.encode() + source
    tree = language.parser.parse(source)
    reading = read(tree, source, language, shared.subtrees, limits, what, code_only=True)
    edges = Flow(reading, _texts(code, source, reading), language, limits, what, package=False).edges()
    state: State = "unparsable" if reading.has_error else "ok"
    if not _has_code(tree, language):
        state = "empty"
    return Analysis(state, text.split(), Counter(reading.subtrees), anonymous(edges, shared.sources))


def _has_code(tree: Tree, language: Loaded) -> bool:
    """Whether there is anything but comments."""
    return any(language.roles[child.kind_id] != COMMENT for child in tree.root_node.children)


def _texts(text: str, source: bytes, tree: Reading) -> list[str | None]:
    """The texts of a tree's stops; None for those that are no tokens."""
    if len(text) == len(source):  # ASCII: bytes are characters
        return [None if span is None else text[span[0] : span[1]] for span in tree.spans]
    return [None if span is None else source[span[0] : span[1]].decode() for span in tree.spans]


def analyse_as_package(
    text: str, language: Loaded, limits: Limits, shared: Shared, what: str
) -> tuple[Analysis, str]:
    """A text as the package ``codebleu`` 0.7.0 reads it, and the code that it has cut out of it."""
    encoded(text, limits, what)
    code = package.code_of(text)
    source = code.encode()
    tree = language.parser.parse(source)
    if tree.root_node.has_error:
        slow = package.code_by_tokenize(text)
        if slow != code:
            code, source = slow, slow.encode()
            tree = language.parser.parse(source)
    # Where it cuts in the wrong place, what it cuts out for a sign is none.
    signs_too = not code.isascii()
    reading = read(tree, source, language, shared.subtrees, limits, what, code_only=False, signs_too=signs_too)
    try:
        edges = Flow(reading, package.token_texts(code, source, reading, language), language, limits, what, package=True).edges()
    except NoFlowError:
        edges = []
    state: State = "unparsable" if reading.has_error else "ok"
    if not _has_code(tree, language):
        state = "empty"
    return Analysis(state, text.split(), Counter(reading.subtrees), anonymous(edges, shared.sources)), code
