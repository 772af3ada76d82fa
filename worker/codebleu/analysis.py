"""What one text is, before it is compared: its words, its subtrees and its dataflow."""

import threading
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from tree_sitter import Tree

from . import package
from .dataflow import Flow, Key, NoFlowError, anonymous
from .language import COMMENT, Loaded
from .limits import Limits, encoded
from .tree import Reading, numbering, read

State = Literal["ok", "empty", "unparsable"]

#: Characters of references whose analyses are kept, in all: some 8,000 functions, which take about 100 MB.
_KEPT = 4_000_000
#: Subtrees and lists of sources that are numbered before numbering starts anew, with nothing kept: about 200 MB.
_NUMBERED = 500_000


@dataclass(frozen=True, slots=True)
class Analysis:
    """One text."""

    state: State
    words: list[str]
    #: How often each subtree, and each edge of the dataflow, is in it.
    subtrees: Counter[int]
    edges: Counter[Key]
    #: As the package reads it: what it leaves of the text.
    code: str


class Reader:
    """Analyses texts of one language by one set of numbers, so that its analyses can be compared with each other.

    References are kept: an evaluation holds the answers of several models to the same ones. For one thread.
    """

    def __init__(self, language: Loaded, limits: Limits, *, as_package: bool) -> None:
        self.language, self._limits, self._as_package = language, limits, as_package
        self._subtrees = numbering()
        self._sources: dict[tuple[int, ...], int] = {}
        self._kept: dict[str, Analysis] = {}
        self._room = _KEPT

    @property
    def is_full(self) -> bool:
        """Whether it is time for a new one."""
        return len(self._subtrees) + len(self._sources) > _NUMBERED

    def reference(self, text: str) -> Analysis:
        """A reference's analysis, kept or made. Raises RefusedError."""
        found = self._kept.get(text)
        if found is None:
            found = self.read(text, "the reference")
            self._kept[text] = found
            self._room -= len(text)
            while self._room < 0:  # the oldest goes first
                oldest = next(iter(self._kept))
                del self._kept[oldest]
                self._room += len(oldest)
        return found

    def read(self, text: str, what: str = "the answer") -> Analysis:
        """A text's analysis. Raises RefusedError; ``what`` names the text in it."""
        found = self._kept.get(text)  # an answer that is some reference, word for word
        if found is not None:
            return found
        return self._read_as_package(text, what) if self._as_package else self._read(text, what)

    def _read(self, text: str, what: str) -> Analysis:
        language, code = self.language, text
        opening = language.table.opening
        if opening and opening.strip() not in text:
            code = opening + text
        source = encoded(code, self._limits, what)
        tree = language.parser.parse(source)
        reading = read(tree, source, language, self._subtrees, self._limits, what, code_only=True)
        flow = Flow(reading, _texts(code, source, reading), language, self._limits, what, package=False)
        edges = anonymous(flow.edges(), self._sources)
        words = text.split() or [text]  # what is white space to Python may be a name to a grammar
        return Analysis(_state(tree, language), words, Counter(reading.subtrees), edges, code)

    def _read_as_package(self, text: str, what: str) -> Analysis:
        """A text as the package ``codebleu`` 0.7.0 reads it."""
        language, limits = self.language, self._limits
        encoded(text, limits, what)
        code = package.code_of(text)
        tree = language.parser.parse(code.encode())
        if tree.root_node.has_error and (slow := package.code_by_tokenize(text)) != code:
            code = slow
            tree = language.parser.parse(code.encode())
        source = code.encode()
        # Where it cuts in the wrong place, what it cuts out for a sign is none.
        signs_too = not code.isascii()
        reading = read(tree, source, language, self._subtrees, limits, what, code_only=False, signs_too=signs_too)
        texts = package.token_texts(code, source, reading, language)
        try:
            edges = anonymous(Flow(reading, texts, language, limits, what, package=True).edges(), self._sources)
        except NoFlowError:
            edges = Counter()
        return Analysis(_state(tree, language), text.split(), Counter(reading.subtrees), edges, code)


class _PerThread(threading.local):
    def __init__(self) -> None:
        self.readers: dict[tuple[str, Limits, bool], Reader] = {}


_per_thread = _PerThread()


def reader(language: Loaded, limits: Limits, *, as_package: bool) -> Reader:
    """This thread's reader. What it has kept changes no score, only how soon it is there."""
    found = _per_thread.readers
    key = (language.table.name, limits, as_package)
    if key not in found or found[key].is_full:
        found[key] = Reader(language, limits, as_package=as_package)
    return found[key]


def _state(tree: Tree, language: Loaded) -> State:
    roles, root = language.roles, tree.root_node
    if all(roles[child.kind_id] == COMMENT for child in root.children):
        return "empty"
    return "unparsable" if root.has_error else "ok"


def _texts(text: str, source: bytes, tree: Reading) -> list[str | None]:
    """The texts of a tree's stops; None for those that are no tokens."""
    if len(text) == len(source):  # ASCII: bytes are characters
        return [None if span is None else text[span[0] : span[1]] for span in tree.spans]
    return [None if span is None else source[span[0] : span[1]].decode() for span in tree.spans]
