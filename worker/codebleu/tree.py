"""A parse tree, read in one pass with a cursor: its tokens, nodes that have a rule, and numbers of its subtrees.

Two subtrees have the same number when their S-expressions are the same: kinds and fields of the named nodes, without
anonymous tokens and without the text of the leaves. A subtree is numbered by its kind and its children's numbers, so
that no text of it is ever made: writing each one out takes the square of a tree's depth. Nothing here recurses.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from tree_sitter import Node, Tree

from .language import COMMENT, DOC, ERROR, PLAIN, RULED, SIGN, STRING, Loaded
from .limits import Limits, RefusedError

#: Numbers of subtrees by their contents, shared by the two texts of a pair. New contents get the next number.
Numbers = defaultdict[tuple[Any, ...], int]

#: Numbers of subtrees start here; below are the kinds, which stand for leaves.
_FIRST = 1 << 17
_COMMENT = frozenset({"comment"})


#: A child of a node that has a rule: its kind and the field that it stands in, by the grammar's numbers; the first stop
#: in it and the first after it; and its own children, where they may matter. Plain tuples, for there are many.
Child = tuple[int, int | None, int, int, Sequence[Any] | None]
#: A node that has a rule: its kind, the first stop after it, and its children.
Ruled = tuple[int, int, Sequence[Child]]


@dataclass(slots=True)
class Reading:
    """What is read from a tree."""

    #: Tokens (leaves, and strings as a whole) and nodes that have a rule, in order of appearance, parents first: of a
    #: token the kind, of such a node -1 - n for the entry n of ``ruled``.
    stops: list[int]
    #: Of each stop that is a token, the bytes from and to.
    spans: list[tuple[int, int] | None]
    ruled: list[Ruled]
    #: Numbers of the subtrees that have children, and of the whole.
    subtrees: list[int]
    has_error: bool


def read(  # noqa: PLR0912, PLR0915 - one loop with everything in local variables: see below
    tree: Tree,
    source: bytes,
    language: Loaded,
    numbers: Numbers,
    limits: Limits,
    what: str,
    *,
    code_only: bool,
    signs_too: bool = False,
) -> Reading:
    """Read a tree.

    ``code_only`` leaves out comments, and statements that are only a string; ``signs_too`` takes signs and keywords for
    tokens. Raises RefusedError where the tree of ``what`` has too many nodes or levels.
    """
    # One loop with everything in local variables: 0.35 microseconds a node, of which 0.14 are the calls of the cursor.
    cursor = tree.walk()
    first, following, up = cursor.goto_first_child, cursor.goto_next_sibling, cursor.goto_parent
    stops: list[int] = []
    spans: list[tuple[int, int] | None] = []
    ruled: list[Ruled] = []
    subtrees: list[int] = []
    roles, skipped = language.roles, COMMENT if code_only else -1
    root = tree.root_node
    broken = root.has_error
    ignores_signs = not (signs_too or broken) and code_only  # four nodes of ten: only that they are there counts
    comments = language.ids(_COMMENT)  # the package takes other things that are no code for tokens
    most_levels = limits.nesting
    # Of the node around this one: what its number is made of, and its children, where they may matter. The first is its
    # kind, then its children's numbers, and before each that stands in a field the field's number, negative.
    content: list[Any] = []
    children: list[Child] | None = None
    # The nodes that this one is in: content and children of the one around it, kind, field, first stop, and one number
    # more: the place among ``ruled`` of a node with a rule, how many subtrees were before another.
    above: list[tuple[list[Any], list[Child] | None, int, int | None, int, int]] = []
    depth = 0
    string = 0  # depth of the string that this node is in
    sign = 0  # depth of a sign that was left out since the last node was entered
    while True:
        node: Any = cursor.node  # never None: a cursor is at a node
        kind = node.kind_id
        role = roles[kind]
        if role != skipped:
            field = None if role == SIGN else cursor.field_id
            if first():
                depth += 1
                sign = 0
                if role < RULED or string:
                    above.append((content, children, kind, field, len(stops), 0))
                    children = None if code_only else []
                elif role == RULED:
                    above.append((content, children, kind, field, len(stops), len(ruled)))
                    stops.append(-1 - len(ruled))
                    spans.append(None)
                    ruled.append(_UNFINISHED)
                    children = []
                else:
                    above.append((content, children, kind, field, len(stops), len(subtrees)))
                    if role == STRING:
                        string = depth
                        stops.append(kind)
                        spans.append(node.byte_range)
                    children = []
                content = [kind]
                if depth > most_levels:
                    raise RefusedError(f"{what} is nested more than {most_levels:,} levels deep")
                continue
            if role == SIGN and ignores_signs:
                sign = depth
            else:
                if broken and (node.is_missing or node.is_error):
                    if field:
                        content.append(-field)
                    content.append(_odd(node, source, numbers))
                    role = PLAIN
                elif role != SIGN:
                    if field:
                        content.append(-field)
                    content.append(kind)
                else:
                    sign = depth
                if not (string or (role == COMMENT and kind in comments) or (role == SIGN and not signs_too)):
                    if children is not None:
                        children.append((kind, field, len(stops), len(stops) + 1, None))
                    stops.append(kind)
                    spans.append(node.byte_range)
                elif children is not None and not code_only:
                    children.append((kind, field, len(stops), len(stops), None))
        while not following():
            if not up():
                if root.descendant_count > limits.nodes:
                    raise RefusedError(f"{what} has more than {limits.nodes:,} nodes")
                if not subtrees:
                    subtrees.append(root.kind_id)
                return Reading(stops, spans, ruled, subtrees, broken)
            inner, kids = content, children
            content, children, kind, field, start, place = above.pop()
            depth -= 1
            role = roles[kind]
            if role >= RULED and (not string or string > depth):
                string = 0
                if role == RULED:
                    ruled[place] = (kind, len(stops), kids or ())
                elif role == DOC and code_only and kids and len(kids) == 1 and roles[kids[0][0]] == STRING:
                    del subtrees[place:], stops[start:], spans[start:]
                    continue
            number = kind  # as of a leaf, where there is nothing named in it: both are written "(kind)"
            if len(inner) > 1:
                number = numbers[tuple(inner)]
                subtrees.append(number)
            elif sign > depth:  # else there was nothing but comments in it
                subtrees.append(number)
            if role == SIGN:
                content += inner[1:]
            else:
                if field:
                    content.append(-field)
                content.append(number)
            if children is not None:
                children.append((kind, field, start, len(stops), kids))


#: Stands for a node until all of it is read.
_UNFINISHED: Ruled = (0, 0, ())


def numbering() -> Numbers:
    """Numbers for the texts that are to be compared."""
    return defaultdict(count(_FIRST).__next__)


def _odd(node: Node, source: bytes, numbers: Numbers) -> int:
    """The number of a leaf that the parser made up, or could make nothing of: S-expressions tell them from others."""
    if node.is_missing:
        return numbers["missing", node.kind_id]
    if node.end_byte == node.start_byte:
        return ERROR
    character = source[node.start_byte : node.start_byte + 4].decode(errors="ignore")[:1]
    return numbers["unexpected", character]
