"""Where values come from: the dataflow of one text, as edges between tokens (section 3.3 of the paper; GraphCodeBERT).

A token is a leaf that is not a keyword or a sign; names, numbers and whole strings are tokens alike. One that is read
comes from the places where its name was last given a value; one that is assigned is computed from the tokens on the
right. What holds at a place is a state: for each name, the tokens that may have given it its value.

The extraction that the paper's authors published recurses, copies the state at every node and runs a loop's body twice
inside every loop around it, which is 2^n times in n loops. The same edges come out here in linear time:

- A value that may come from several places is a join, a node in a graph that is gone through once, at the end.
- A branch notes what it changes and takes it back, so that only changed names are joined.
- A body that has been run needs one turn, no matter how many loops are around it. By then every name of it is known, so
  a turn maps a state S to G | (S - K), G and K being fixed sets. This map is its own square, and what it reads from a
  union of states is the union of what it reads from each; so the second turn of a later visit would read nothing that
  the first turn of this visit or the second of the first visit has not read.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from .language import Loaded
from .limits import Limits, RefusedError
from .rules import COMES_FROM, COMPUTED_FROM, Assign, Branch, Each, First, Repeat, Rule, Update
from .tree import Flat

#: A token's relation, and the tokens' names that it holds to.
Edge = tuple[str, str, tuple[str, ...]]

# What is left to do is a stack of (what, from, to); what it is for _RUN, nodes from and to.
_RUN, _GIVE, _OPEN, _SHUT, _JOIN, _LEAVE = range(6)
_Task = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class _Gift:
    """Tokens that are given a value, and the tokens that it is made from."""

    takers: Sequence[int]
    givers: Sequence[int]
    relation: str


@dataclass(frozen=True, slots=True)
class _Fork:
    """A branch node that is being run: whether one way is surely taken, and what each changed, as name -> value."""

    total: bool
    ways: list[dict[str, int]]


class NoFlowError(Exception):
    """The text has a shape that the package can't read; it takes the text for one without dataflow."""


class Flow:
    """Follows the data of one text; ``names[i]`` is node i's token, None where it is none.

    ``package``: as the package ``codebleu`` 0.7.0 does it where it departs from the rules. For Python only.
    """

    def __init__(
        self, tree: Flat, names: Sequence[str | None], language: Loaded, limits: Limits, what: str, *, package: bool
    ) -> None:
        self._tree, self._names, self._language, self._package = tree, names, language, package
        self._limits, self._what, self._left = limits, what, limits.steps
        kinds, rules = tree.kinds, language.rules
        self._tokens = [node for node, name in enumerate(names) if name is not None]
        self._ruled: dict[int, Rule] = {
            node: rule for node, kind in enumerate(kinds) if kind < len(rules) and (rule := rules[kind]) is not None
        }
        #: The nodes that do something: tokens, and nodes that have a rule.
        self._stops = sorted([*self._tokens, *self._ruled])
        #: What a name holds: the token that gave it its value, or -1 - n for the join n.
        self._state: dict[str, int] = {}
        self._joins: list[tuple[int, ...]] = []
        self._joined = bytearray()  # joins that are read
        self._kept = bytearray(len(kinds))  # tokens that another one comes from
        self._read: dict[int, bool] = {}  # tokens that are read -> whether their name is ever known there
        self._gifts: list[_Gift] = []
        self._given: dict[int, int] = {}  # tokens that are given a value -> the gift
        self._looped: set[int] = set()  # gifts that are made in a loop
        self._before: list[dict[str, int | None]] = []  # for each way that is being run, what its names held before
        self._forks: list[_Fork] = []
        self._loops = 0
        self._turned: set[int] = set()  # loops that were run
        self._todo: list[_Task] = []

    def edges(self) -> list[Edge]:
        """The edges, in the order of their tokens.

        Raises NoFlowError (``package`` only), and RefusedError where following takes too many steps.
        """
        self._todo.append((_RUN, 0, len(self._tree.kinds)))
        while self._todo:
            what, start, end = self._todo.pop()
            if what == _RUN:
                self._run(start, end)
            elif what == _GIVE:
                self._give(start)
            elif what == _OPEN:
                self._before.append({})
            elif what == _SHUT:
                self._shut()
            elif what == _JOIN:
                self._join()
            else:
                self._loops -= 1
        self._keep_joined()
        return self._edges()

    def _spend(self, steps: int) -> None:
        self._left -= steps
        if self._left < 0:
            raise RefusedError(f"the dataflow of {self._what} takes more than {self._limits.steps:,} steps")

    def _tokens_in(self, node: int) -> list[int]:
        tokens = self._tokens
        found = tokens[bisect_left(tokens, node) : bisect_left(tokens, self._tree.last[node])]
        self._spend(len(found))
        return found

    def _set(self, name: str, value: int) -> None:
        if self._before:
            self._before[-1].setdefault(name, self._state.get(name))
        self._state[name] = value

    # -- what is run

    def _run(self, node: int, end: int) -> None:
        """Read tokens in order, up to the first node that has a rule."""
        stops, names, state, read = self._stops, self._names, self._state, self._read
        first = position = bisect_left(stops, node)
        while position < len(stops) and (node := stops[position]) < end:
            position += 1
            name = names[node]
            if name is None:
                self._todo.append((_RUN, self._tree.last[node], end))
                self._enter(node, self._ruled[node])
                break
            value = state.get(name)
            if value is None:
                read.setdefault(node, False)
                if self._tree.kinds[node] in self._language.names:
                    self._set(name, node)
            else:
                read[node] = True
                if value >= 0:
                    self._kept[value] = 1
                else:
                    self._joined[-1 - value] = 1
        self._spend(position - first + 1)

    def _enter(self, node: int, rule: Rule) -> None:
        """Put what a node's rule says on the stack."""
        match rule:
            case Assign():
                tasks = self._assign(node, rule)
            case Branch():
                tasks = self._branch(node, rule)
            case Each() | Repeat():
                tasks = self._loop(node, rule)
            case First():
                tasks = self._in_turn(self._sorted_by(node, rule.kinds))
            case Update():
                tokens = self._tokens_in(node)
                tasks = [self._gift(tokens, tokens, COMPUTED_FROM)]
        self._todo += reversed(tasks)

    def _in_turn(self, nodes: Sequence[int]) -> list[_Task]:
        self._spend(len(nodes))
        return [(_RUN, node, self._tree.last[node]) for node in nodes]

    def _sorted_by(self, node: int, kinds: frozenset[str]) -> list[int]:
        """A node's children, those of some kinds first."""
        wanted = self._language.ids(kinds)
        return sorted(self._tree.children(node), key=lambda child: self._tree.kinds[child] not in wanted)

    # -- assignments

    def _assign(self, node: int, rule: Assign) -> list[_Task]:
        lefts, rights = self._side(node, rule.left), self._side(node, rule.right)
        if not rights:
            if rule.declares:
                for token in (token for left in lefts for token in self._tokens_in(left)):
                    self._read.setdefault(token, False)
                    self._set(self._names[token] or "", token)
            return [] if self._package or rule.declares else self._in_turn(self._tree.children(node))
        if self._package and not lefts:
            raise NoFlowError
        sides = self._pairs(lefts, rights) if rule.pairs else None
        gifts = self._gifts_of(lefts, rights, sides, rule.relation)
        return self._in_turn(rights if sides is None else [right for _, right in sides]) + gifts

    def _gifts_of(
        self, lefts: list[int], rights: list[int], pairs: list[tuple[int, int]] | None, relation: str
    ) -> list[_Task]:
        if pairs is not None:
            return [self._gift(self._tokens_in(left), self._tokens_in(right), relation) for left, right in pairs]
        takers = [token for left in lefts for token in self._tokens_in(left)]
        givers = [token for right in rights for token in self._tokens_in(right)]
        return [self._gift(takers, givers, relation)]

    def _side(self, node: int, field: str) -> list[int]:
        """A node's children under a field; the package takes one of them, and fails on none that it needs."""
        number = self._language.fields.get(field)
        fields = self._tree.fields
        children = self._tree.children(node)
        found = [child for child in children if fields[child] == number]
        if self._package and self._language.kind_names[self._tree.kinds[node]] == "for_in_clause" and field == "right":
            return children[-1:]
        return found[:1] if self._package else found

    def _pairs(self, lefts: list[int], rights: list[int]) -> list[tuple[int, int]] | None:
        """What is assigned item by item, or None where all is assigned to all."""
        if len(lefts) != 1 or len(rights) != 1:
            if self._package:
                raise NoFlowError
            return None
        kinds, lists = self._tree.kinds, self._language.lists
        if self._package:
            return self._pairs_of_package(lefts[0], rights[0])
        if kinds[lefts[0]] not in lists or kinds[rights[0]] not in lists:
            return None
        named = self._language.named
        items = [[child for child in self._tree.children(side[0]) if named[kinds[child]]] for side in (lefts, rights)]
        return list(zip(*items, strict=True)) if len(items[0]) == len(items[1]) else None

    def _pairs_of_package(self, left: int, right: int) -> list[tuple[int, int]] | None:
        """The package pairs the children of whatever stands on both sides: ``self`` and ``y`` in ``self.x = y.z``.

        A string's children are unknown to it, and it gives the text's dataflow up: ``self.x = "abc"`` has none.
        """
        kinds, names = self._tree.kinds, self._language.kind_names
        lefts, rights = (
            [child for child in self._tree.children(side) if kinds[child] >= len(names) or names[kinds[child]] != ","]
            for side in (left, right)
        )
        if not lefts or len(lefts) != len(rights):
            return None
        if kinds[left] in self._language.strings or kinds[right] in self._language.strings:
            raise NoFlowError
        return list(zip(lefts, rights, strict=True))

    def _gift(self, takers: Sequence[int], givers: Sequence[int], relation: str) -> _Task:
        self._gifts.append(_Gift(takers, givers, relation))
        return (_GIVE, len(self._gifts) - 1, 0)

    def _give(self, number: int) -> None:
        gift = self._gifts[number]
        # A default value without any token, (), leaves no edge in the package, though the name is known from there.
        silent = self._package and gift.relation == COMES_FROM and not gift.givers
        if self._loops:
            self._looped.add(number)
        for token in gift.takers:
            if not silent:
                self._given[token] = number
            self._set(self._names[token] or "", token)
        if gift.takers:
            for token in gift.givers:
                self._kept[token] = 1

    # -- branches

    def _branch(self, node: int, rule: Branch) -> list[_Task]:
        language, kinds = self._language, self._tree.kinds
        children = self._tree.children(node)
        alternatives, otherwise = language.ids(rule.alternatives), language.ids(rule.otherwise)
        others = [child for child in children if kinds[child] in alternatives]
        self._forks.append(_Fork(any(kinds[child] in otherwise for child in children), []))
        first = [child for child in children if kinds[child] not in alternatives]
        tasks = [(_OPEN, 0, 0), *self._in_turn(first), (_SHUT, 0, 0)]
        for child in others:
            tasks += [(_OPEN, 0, 0), *self._in_turn([child]), (_SHUT, 0, 0)]
        return [*tasks, (_JOIN, 0, 0)]

    def _shut(self) -> None:
        """End a way: keep what it changed, and take it back."""
        before, state = self._before.pop(), self._state
        self._forks[-1].ways.append({name: state[name] for name in before})
        for name, value in before.items():
            if value is None:
                del state[name]
            else:
                state[name] = value
        self._spend(len(before))

    def _join(self) -> None:
        """A name that some way has changed may hold what any of them left it with."""
        fork = self._forks.pop()
        values: dict[str, list[int]] = {}
        for way in fork.ways:
            for name, value in way.items():
                values.setdefault(name, []).append(value)
        for name, found in values.items():
            before = self._state.get(name)
            if before is not None and (len(found) < len(fork.ways) or not fork.total):
                found.append(before)
            distinct = tuple(dict.fromkeys(found))
            if len(distinct) > 1:
                self._joins.append(distinct)
                self._joined.append(0)
            self._set(name, distinct[0] if len(distinct) == 1 else -len(self._joins))
            self._spend(len(found))

    # -- loops

    def _loop(self, node: int, rule: Each | Repeat) -> list[_Task]:
        turns = 1 if node in self._turned else 2
        self._turned.add(node)
        self._loops += 1
        turn = self._each(node, rule) if isinstance(rule, Each) else [(_RUN, node + 1, self._tree.last[node])]
        return [*turn * turns, (_LEAVE, 0, 0)]

    def _each(self, node: int, rule: Each) -> list[_Task]:
        lefts, rights = self._side(node, rule.left), self._side(node, rule.right)
        pairs = self._pairs(lefts, rights) if self._package else None
        head = self._in_turn(rights if pairs is None else [right for _, right in pairs])
        head += self._gifts_of(lefts, rights, pairs, COMPUTED_FROM)
        rest = [child for child in self._tree.children(node) if child not in (*lefts, *rights)]
        if self._package:  # it runs the last child, if that is the body and not an else
            kinds, names = self._tree.kinds, self._language.kind_names
            rest = [child for child in rest[-1:] if kinds[child] < len(names) and names[kinds[child]] == "block"]
        return head + self._in_turn(rest)

    # -- what came out

    def _keep_joined(self) -> None:
        """Keep the tokens that the joins which were read are made of. A join is made of earlier ones."""
        for number in range(len(self._joins) - 1, -1, -1):
            if self._joined[number]:
                for value in self._joins[number]:
                    if value >= 0:
                        self._kept[value] = 1
                    else:
                        self._joined[-1 - value] = 1

    def _edges(self) -> list[Edge]:
        """An edge for each token that comes from another, or that another comes from."""
        found: list[Edge] = []
        sources: dict[int, tuple[str, ...]] = {}
        for token in self._tokens:
            name, number = self._names[token] or "", self._given.get(token)
            if number is not None:
                gift = self._gifts[number]
                if gift.givers or self._kept[token]:
                    if number not in sources:
                        sources[number] = self._source_names(number)
                    found.append((name, gift.relation, sources[number]))
            elif token in self._read:
                known = self._read[token]
                if known or self._kept[token]:
                    found.append((name, COMES_FROM, (name,) if known else ()))
        return found

    def _source_names(self, number: int) -> tuple[str, ...]:
        """The names that a gift is made from, each once.

        The package puts them in the order of a set of strings, which changes with the hash seed, wherever it merges two
        edges: in loops and in default values. The order of the alphabet stands for it. Elsewhere it merges nothing.
        """
        gift = self._gifts[number]
        names = [self._names[token] or "" for token in gift.givers]
        if not self._package:
            return tuple(dict.fromkeys(names))
        merged = number in self._looped or (gift.relation == COMES_FROM and len(names) > 1)
        return tuple(sorted(set(names))) if merged else tuple(names)


def anonymous(edges: Sequence[Edge], numbers: dict[tuple[int, ...], int]) -> Counter[tuple[int, str, int]]:
    """How often each edge is there when names are numbered in order of appearance, sources before what they make.

    ``numbers`` numbers lists of sources, for all the texts that are compared.
    """
    order: dict[str, int] = {}
    lists: dict[int, int] = {}  # a list that many edges share is numbered once
    found: Counter[tuple[int, str, int]] = Counter()
    for name, relation, sources in edges:
        number = lists.get(id(sources))
        if number is None:
            listed = tuple([order.setdefault(source, len(order)) for source in sources])
            number = lists[id(sources)] = numbers.setdefault(listed, len(numbers))
        found[order.setdefault(name, len(order)), relation, number] += 1
    return found
