"""A parse tree as lists, read in one pass with a cursor, and the numbers of its subtrees. No recursion anywhere.

Two subtrees have the same number when their S-expressions are the same: kinds and fields of the named nodes, without
anonymous tokens and without the text of the leaves. A subtree is numbered by its kind and its children's numbers, so
that no text of it is ever made: writing each one out takes the square of a tree's depth.
"""

from dataclasses import dataclass
from typing import Any

from tree_sitter import Node, Tree

from .language import Loaded
from .limits import Limits, RefusedError

#: Numbers of subtrees by their contents, shared by the two texts of a pair.
Numbers = dict[tuple[Any, ...], int]

#: Numbers of subtrees start here; below are the kinds, which stand for leaves.
_FIRST = 1 << 17
#: What tree-sitter calls a node that it could make nothing of.
ERROR = 65_535


@dataclass(frozen=True, slots=True)
class Flat:
    """A tree's nodes in order of appearance, parents first; entry i of each list belongs to node i."""

    #: The grammar's number of the kind, and of the field that the parent calls it by.
    kinds: list[int]
    fields: list[int | None]
    #: The first node after it that is not below it: i + 1 for a leaf.
    last: list[int]
    #: Bytes from and to, of leaves and of strings; 0 for others.
    starts: list[int]
    ends: list[int]
    #: Leaves that the parser made up, in a text with errors.
    missing: frozenset[int]
    #: Numbers of the subtrees that have children, and of the whole.
    subtrees: list[int]
    has_error: bool

    def children(self, node: int) -> list[int]:
        """The children of a node, anonymous ones included."""
        found, child, end = [], node + 1, self.last[node]
        while child < end:
            found.append(child)
            child = self.last[child]
        return found


def flatten(
    tree: Tree, source: bytes, language: Loaded, numbers: Numbers, limits: Limits, what: str, *, code_only: bool
) -> Flat:
    """The tree as lists. ``code_only`` leaves out comments, and statements that are only a string.

    Raises RefusedError where the tree of ``what`` has too many nodes or levels.
    """
    cursor = tree.walk()
    first, following, up = cursor.goto_first_child, cursor.goto_next_sibling, cursor.goto_parent
    kinds: list[int] = []
    fields: list[int | None] = []
    last: list[int] = []
    starts: list[int] = []
    ends: list[int] = []
    subtrees: list[int | None] = []
    missing: set[int] = set()
    named, strings = language.named, language.strings
    skipped = language.comments if code_only else frozenset[int]()
    docs = language.string_statements if code_only else frozenset[int]()
    broken = tree.root_node.has_error
    above: list[int] = []  # the nodes that this one is in
    contents: list[list[Any]] = [[]]  # and what the number of each is made of
    while True:
        node = cursor.node
        if node is None:
            raise AssertionError("a cursor is always at a node")
        kind = node.kind_id
        if kind not in skipped:
            here = len(kinds)
            kinds.append(kind)
            field = cursor.field_id
            fields.append(field)
            subtrees.append(None)
            if first():
                is_string = kind in strings
                starts.append(node.start_byte if is_string else 0)
                ends.append(node.end_byte if is_string else 0)
                last.append(0)
                above.append(here)
                contents.append([kind])
                if len(above) > limits.nesting:
                    raise RefusedError(f"{what} is nested more than {limits.nesting:,} levels deep")
                continue
            last.append(here + 1)
            starts.append(node.start_byte)
            ends.append(node.end_byte)
            if broken:
                contents[-1] += (field, _odd_leaf(node, source, numbers, named)) if _shown(node) else ()
                if node.is_missing:
                    missing.add(here)
            elif named[kind]:
                contents[-1] += (field, kind)
            if here > limits.nodes:
                raise RefusedError(f"{what} has more than {limits.nodes:,} nodes")
        while not following():
            if not up():
                if not contents[0] or subtrees[0] is None:
                    subtrees[0] = _number(numbers, [kinds[0]])
                found = [number for number in subtrees if number is not None]
                return Flat(kinds, fields, last, starts, ends, frozenset(missing), found, broken)
            here = above.pop()
            content = contents.pop()
            kind = kinds[here]
            below = here + 1
            if kind in docs and len(kinds) > below and kinds[below] in strings and last[below] == len(kinds):
                for entries in (kinds, fields, last, starts, ends, subtrees):
                    del entries[here:]
                continue
            last[here] = len(kinds)
            if len(kinds) == below:  # nothing but comments was in it
                number = kind
            else:
                number = subtrees[here] = _number(numbers, content)
            if kind == ERROR or named[kind]:
                contents[-1] += (fields[here], number)
            else:
                contents[-1] += content[1:]


def _number(numbers: Numbers, content: list[Any]) -> int:
    return numbers.setdefault(tuple(content), _FIRST + len(numbers))


def _shown(node: Node) -> bool:
    """Whether a leaf is in the S-expression."""
    return node.is_named or node.is_missing


def _odd_leaf(node: Node, source: bytes, numbers: Numbers, named: tuple[bool, ...]) -> int:
    """The number of a leaf in a tree with errors: made-up leaves and stray characters are told apart from real ones."""
    if node.is_missing:
        return _number(numbers, ["missing", node.kind_id])
    if node.is_error and node.end_byte > node.start_byte:
        character = source[node.start_byte : node.start_byte + 4].decode(errors="ignore")[:1]
        return _number(numbers, ["unexpected", character])
    return node.kind_id
