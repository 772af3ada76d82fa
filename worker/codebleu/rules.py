"""What a language's table can say about how its nodes move data. ``dataflow`` carries the rules out.

A node whose kind has no rule is read in the order of its children. Kinds and fields are the grammar's names.
"""

from collections.abc import Mapping
from dataclasses import dataclass

#: What an edge of the dataflow says: taken over as it is, or worked out from it.
COMES_FROM, COMPUTED_FROM = "comesFrom", "computedFrom"


#: A child by the field that it stands in, or by its place among the children, from 0.
Side = str | int


@dataclass(frozen=True)
class Assign:
    """The tokens of one child are made from those of another: ``left = right``.

    Without a right side the left is a new name where the node ``declares`` it, and nothing happens to it else. With
    ``pairs``, a list on the left and one as long on the right are taken item by item.
    """

    left: Side = "left"
    right: Side = "right"
    relation: str = COMPUTED_FROM
    pairs: bool = True
    declares: bool = False


@dataclass(frozen=True)
class Update:
    """Every token of the node is made from all of them: ``count++``."""


@dataclass(frozen=True)
class Branch:
    """Ways of which one is taken: each alternative starts from what held before the node.

    Alternatives are the children of some kinds, or under a field. The other children are one way more, the first. Where
    a child of a kind in ``otherwise``, or one under the field, is there, one of the ways is surely taken; else what
    held before may hold after it, too.
    """

    alternatives: frozenset[str] = frozenset()
    otherwise: frozenset[str] = frozenset()
    field: str | None = None


@dataclass(frozen=True)
class Repeat:
    """The children are run again: a value at the start of one turn may come from the end of the turn before."""


@dataclass(frozen=True)
class Each:
    """Turns over a collection: each makes ``left`` from ``right`` and runs the other children."""

    left: Side = "left"
    right: Side = "right"


@dataclass(frozen=True)
class First:
    """Children of these kinds run before the others: ``[f(x) for x in xs]``."""

    kinds: frozenset[str]


Rule = Assign | Update | Branch | Repeat | Each | First
Rules = Mapping[str, Rule]
