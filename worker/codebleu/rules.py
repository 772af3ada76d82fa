"""What a language's table can say about how its nodes move data. ``dataflow`` carries the rules out.

A node whose kind has no rule is read in the order of its children. Kinds and fields are the grammar's names.
"""

from collections.abc import Mapping
from dataclasses import dataclass

#: What an edge of the dataflow says: taken over as it is, or worked out from it.
COMES_FROM, COMPUTED_FROM = "comesFrom", "computedFrom"


@dataclass(frozen=True)
class Assign:
    """The tokens of one child are made from those of another: ``left = right``.

    Without a right side nothing happens. With ``pairs``, a list on the left and one as long on the right are taken
    item by item. ``declares``: without a right side the left is a new name all the same.
    """

    left: str = "left"
    right: str = "right"
    relation: str = COMPUTED_FROM
    pairs: bool = True
    declares: bool = False


@dataclass(frozen=True)
class Update:
    """Every token of the node is made from all of them: ``count++``."""


@dataclass(frozen=True)
class Branch:
    """Ways of which one is taken: each alternative starts from what held before the node.

    The children of no alternative are one way more, the first. Where one of ``otherwise`` is among the children, one of
    the ways is surely taken; else what held before may hold after it, too.
    """

    alternatives: frozenset[str]
    otherwise: frozenset[str]


@dataclass(frozen=True)
class Repeat:
    """The children are run again: a value of the end of one turn may come from the start of the next."""


@dataclass(frozen=True)
class Each:
    """Turns over a collection: each makes ``left`` from ``right`` and runs the other children."""

    left: str = "left"
    right: str = "right"


@dataclass(frozen=True)
class First:
    """Children of these kinds run before the others: ``[f(x) for x in xs]``."""

    kinds: frozenset[str]


Rule = Assign | Update | Branch | Repeat | Each | First
Rules = Mapping[str, Rule]
