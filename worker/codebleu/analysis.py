"""What one text is, before it is compared: its words, its subtrees and its dataflow."""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from tree_sitter import Tree

from . import package
from .dataflow import Flow, NoFlowError, anonymous
from .language import Loaded
from .limits import Limits, encoded
from .tree import Flat, Numbers, flatten

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
    edges: Counter[tuple[int, str, int]]


def analyse(text: str, language: Loaded, limits: Limits, shared: Shared, what: str) -> Analysis:
    """A text by our own rules. Raises RefusedError; ``what`` names the text in it."""
    source = encoded(text, limits, what)
    opening = language.table.opening
    if opening and opening.strip() not in text:
        source = opening.encode() + source
    tree = language.parser.parse(source)
    flat = flatten(tree, source, language, shared.subtrees, limits, what, code_only=True)
    names = _token_names(source, flat, language)
    edges = Flow(flat, names, language, limits, what, package=False).edges()
    state: State = "unparsable" if flat.has_error else "ok"
    if not _has_code(tree, language):
        state = "empty"
    return Analysis(state, text.split(), Counter(flat.subtrees), anonymous(edges, shared.sources))


def _has_code(tree: Tree, language: Loaded) -> bool:
    """Whether there is anything but comments."""
    return any(child.kind_id not in language.comments for child in tree.root_node.children)


def _token_names(source: bytes, tree: Flat, language: Loaded) -> list[str | None]:
    """Each node's token: the text of a named leaf, or of a whole string."""
    names: list[str | None] = [None] * len(tree.kinds)
    named, strings, last, starts, ends = language.named, language.strings, tree.last, tree.starts, tree.ends
    until = 0  # where a string ends
    for node, kind in enumerate(tree.kinds):
        if last[node] > node + 1 and kind not in strings:
            continue
        if node < until or kind >= len(named) or not named[kind]:
            continue
        until = last[node]
        if ends[node] > starts[node]:
            names[node] = source[starts[node] : ends[node]].decode()
    return names


def analyse_as_package(text: str, language: Loaded, limits: Limits, shared: Shared, what: str) -> tuple[Analysis, str]:
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
    flat = flatten(tree, source, language, shared.subtrees, limits, what, code_only=False)
    names = package.token_names(code, source, flat, language)
    try:
        edges = Flow(flat, names, language, limits, what, package=True).edges()
    except NoFlowError:
        edges = []
    state: State = "unparsable" if flat.has_error else "ok"
    if not _has_code(tree, language):
        state = "empty"
    return Analysis(state, text.split(), Counter(flat.subtrees), anonymous(edges, shared.sources)), code
