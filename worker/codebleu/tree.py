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


@dataclass(slots=True)
class Flat:
    """A tree's nodes in order of appearance, parents first; entry i of the first three lists belongs to node i."""

    #: The grammar's number of the kind, and of the field that the parent calls it by.
    kinds: list[int]
    fields: list[int | None]
    #: The first node after it that is not below it: i + 1 for a leaf.
    last: list[int]
    #: The nodes that are tokens (leaves and whole strings) or have a rule; for tokens, the bytes from and to.
    stops: list[int]
    spans: list[tuple[int, int] | None]
    #: Numbers of the subtrees that have children, and of the whole.
    subtrees: list[int]
    has_error: bool

    def children(self, node: int) -> list[int]:
        """The children of a node."""
        found, child, end = [], node + 1, self.last[node]
        while child < end:
            found.append(child)
            child = self.last[child]
        return found


def flatten(
    tree: Tree, source: bytes, language: Loaded, numbers: Numbers, limits: Limits, what: str, *, code_only: bool
) -> Flat:
    """The tree as lists. ``code_only`` leaves out signs and keywords, comments, and statements that are only a string.

    Raises RefusedError where the tree of ``what`` has too many nodes or levels.
    """
    # One loop with everything in local variables: this is a third of what a score costs, 0.3 microseconds a node.
    cursor = tree.walk()
    first, following, up = cursor.goto_first_child, cursor.goto_next_sibling, cursor.goto_parent
    kinds: list[int] = []
    fields: list[int | None] = []
    last: list[int] = []
    stops: list[int] = []
    spans: list[tuple[int, int] | None] = []
    subtrees: list[int] = []
    signs, strings, rules = language.signs, language.strings, language.rules
    comments, skipped = language.comments, language.comments if code_only else frozenset[int]()
    docs = language.string_statements if code_only else frozenset[int]()
    broken = tree.root_node.has_error
    # The nodes that this one is in; of each, how many subtrees were before it, and what its parent's number is made of.
    above: list[tuple[int, int, list[Any]]] = []
    content: list[Any] = []  # what the number of the node around this one is made of
    string = 0  # how many nodes are above the string that this node is in
    sign = 0  # how many nodes were before the last sign that was left out
    here = 0
    while True:
        node: Any = cursor.node  # never None: a cursor is at a node
        kind = node.kind_id
        if kind not in skipped:
            is_sign = kind in signs
            field = None if is_sign else cursor.field_id
            entered = first()
            if entered or not is_sign or not code_only:
                kinds.append(kind)
                fields.append(field)
                here += 1
            if entered:
                last.append(0)
                above.append((here - 1, len(subtrees), content))
                content = [kind]
                if string:
                    pass
                elif kind in rules:
                    stops.append(here - 1)
                    spans.append(None)
                elif kind in strings:
                    string = len(above)
                    stops.append(here - 1)
                    spans.append(node.byte_range)
                if len(above) > limits.nesting:
                    raise RefusedError(f"{what} is nested more than {limits.nesting:,} levels deep")
                continue
            if broken and (node.is_missing or node.is_error):
                content += (field, _odd(node, source, numbers))
                is_sign = False
            elif not is_sign:
                content += (field, kind)
            elif code_only:
                sign = here
            if len(kinds) > len(last):
                last.append(here)
                if not is_sign and not string and kind not in comments:
                    stops.append(here - 1)
                    spans.append(node.byte_range)
                if here > limits.nodes:
                    raise RefusedError(f"{what} has more than {limits.nodes:,} nodes")
        while not following():
            if not up():
                if not subtrees:
                    subtrees.append(_number(numbers, kinds))
                return Flat(kinds, fields, last, stops, spans, subtrees, broken)
            opened, before, outer = above.pop()
            kind = kinds[opened]
            below = opened + 1
            if string > len(above):
                string = 0
            if kind in docs and below < here and kinds[below] in strings and last[below] == here:
                del kinds[opened:], fields[opened:], last[opened:], subtrees[before:], stops[-1], spans[-1]
                here, content = opened, outer
                continue
            last[opened] = here
            number = kind  # as of a leaf, where there was nothing but comments in it
            if here > below or sign == below:
                number = numbers.setdefault(tuple(content), _FIRST + len(numbers))
                subtrees.append(number)
            if kind in signs:
                outer += content[1:]
            else:
                outer += (fields[opened], number)
            content = outer


def _number(numbers: Numbers, content: list[Any]) -> int:
    return numbers.setdefault(tuple(content), _FIRST + len(numbers))


def _odd(node: Node, source: bytes, numbers: Numbers) -> int:
    """The number of a leaf that the parser made up, or could make nothing of: S-expressions tell them from others."""
    if node.is_missing:
        return _number(numbers, ["missing", node.kind_id])
    if node.end_byte == node.start_byte:
        return ERROR
    character = source[node.start_byte : node.start_byte + 4].decode(errors="ignore")[:1]
    return _number(numbers, ["unexpected", character])
