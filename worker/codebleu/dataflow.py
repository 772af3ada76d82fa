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

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import count

from .language import LIST, STRING, Loaded
from .limits import Limits, RefusedError
from .rules import COMES_FROM, COMPUTED_FROM, Assign, Branch, Each, First, Repeat, Rule, Side
from .tree import Child, Reading

#: A token, its relation, and the names that it holds to: None for its own, which is what a token that is read holds to.
Edge = tuple[str, str, tuple[str, ...] | None]
#: An edge by numbers.
Key = int | tuple[int, str, int]

# What is left to do is a stack of (what, number, number). Tokens go by their place among the tree's stops.
_RUN = 0  # the stops from, up to
_GIVE = 1  # the gift
_FORK = 2  # a branch begins; whether one of its ways is surely taken
_OPEN, _SHUT, _JOIN = 3, 4, 5  # a way begins, ends; the branch ends
_ENTER, _LEAVE = 6, 7  # a loop begins, ends
_MEET = 8  # a way ends that may not have been taken, and there is no other
_Task = tuple[int, int, int]

#: Tokens that are given a value, the tokens that it is made from, and how.
_Gift = tuple[list[int], list[int], str]
#: A branch that is being run: whether one way is surely taken, and what each way changed, as name -> value.
_Fork = tuple[bool, list[dict[str, int]]]
#: What is known of a token that was read, in bits: where its name held nothing, and where it held something.
_UNKNOWN, _KNOWN = 1, 3

_CLAUSE, _BLOCK, _COMMA = frozenset({"for_in_clause"}), frozenset({"block"}), frozenset({","})


class NoFlowError(Exception):
    """The text has a shape that the package can't read; it takes the text for one without dataflow."""


class Flow:
    """Follows the data of one text; ``texts`` are those of the tree's stops, None for one that is no token.

    ``package``: as the package ``codebleu`` 0.7.0 does it where it departs from the rules. For Python only.
    """

    def __init__(
        self, tree: Reading, texts: Sequence[str | None], language: Loaded, limits: Limits, what: str, *, package: bool
    ) -> None:
        self._tree, self._texts, self._language, self._package = tree, texts, language, package
        self._limits, self._what, self._left = limits, what, limits.steps
        self._todo: list[_Task] = [(_RUN, 0, len(texts))]
        self._tasks: list[list[_Task] | None] = [None] * len(tree.ruled)  # of nodes with a rule: what to do, last first
        #: What a name holds: the token that gave it its value, or -1 - n for the join n.
        self._state: dict[str, int] = {}
        self._joins: list[tuple[int, ...]] = []
        self._joined = bytearray()  # joins that are read
        self._kept = bytearray(len(texts))  # tokens that another one comes from
        self._read = bytearray(len(texts))
        self._gifts: list[_Gift] = []
        self._given = [-1] * len(texts)  # of tokens that are given a value, the gift
        self._looped: set[int] = set()  # gifts that are made in a loop
        self._before: list[dict[str, int | None]] = []  # for each way that is being run, what its names held before
        self._forks: list[_Fork] = []
        self._loops = 0

    def edges(self) -> list[Edge]:
        """The edges, in the order of their tokens.

        Raises NoFlowError (``package`` only), and RefusedError where following takes too many steps.
        """
        self._follow()
        self._keep_joined()
        return self._edges()

    def _follow(self) -> None:  # noqa: PLR0912 - see below
        """Do all that is to be done. Reading tokens stands here, not in a function: it is most of it."""
        todo, texts, stops, ruled = self._todo, self._texts, self._tree.stops, self._tree.ruled
        state, before, read, kept = self._state, self._before, self._read, self._kept
        known, joined, entered = self._language.names, self._joined, self._tasks
        while todo:
            if self._left < 0:
                raise RefusedError(f"the dataflow of {self._what} takes more than {self._limits.steps:,} steps")
            what, number, end = todo.pop()
            if what != _RUN:
                if what == _GIVE:
                    self._give(number)
                elif what == _OPEN:
                    before.append({})
                else:
                    self._do(what, number)
                continue
            for stop in range(number, end):
                name = texts[stop]
                if name is None:
                    if stops[stop] >= 0:
                        continue  # a token that the package takes for none
                    node = -1 - stops[stop]
                    after = ruled[node][1]
                    if after < end:
                        todo.append((_RUN, after, end))
                    tasks = entered[node]
                    if tasks is None:
                        tasks = self._prepare(node)
                    todo += tasks
                    self._left -= len(tasks)
                    end = stop
                    break
                value = state.get(name)
                if value is None:
                    read[stop] |= _UNKNOWN
                    if stops[stop] in known:
                        if before:
                            before[-1].setdefault(name, None)
                        state[name] = stop
                else:
                    read[stop] = _KNOWN
                    if value >= 0:
                        kept[value] = 1
                    else:
                        joined[-1 - value] = 1
            self._left -= 1 + end - number

    def _do(self, what: int, number: int) -> None:
        if what == _SHUT:
            self._shut()
        elif what == _MEET:
            self._meet()
        elif what == _FORK:
            self._forks.append((bool(number), []))
        elif what == _JOIN:
            self._join()
        else:
            self._loops += 1 if what == _ENTER else -1
            self._left += 1  # it is no step

    def _prepare(self, number: int) -> list[_Task]:
        """What to do where a node with a rule is met for the first time, last first; and keep it for later times."""
        kind, _, children = self._tree.ruled[number]
        rule = self._language.rules[kind]
        tasks = self._last_first(kind, children, rule)
        if not isinstance(rule, Each | Repeat):
            self._tasks[number] = tasks
            return tasks
        self._tasks[number] = [(_LEAVE, 0, 0), *tasks, (_ENTER, 0, 0)]
        self._left += len(tasks)  # the second turn is no step more
        return [(_LEAVE, 0, 0), *tasks, *tasks, (_ENTER, 0, 0)]

    def _last_first(self, kind: int, children: Sequence[Child], rule: Rule) -> list[_Task]:
        """What a rule says of a node; of a loop, for one turn. The last task comes first."""
        if isinstance(rule, Assign):
            return self._assign(kind, children, rule)[::-1]
        if isinstance(rule, Branch):
            return self._branch(children, rule)[::-1]
        if isinstance(rule, Each):
            return self._each(kind, children, rule)[::-1]
        if isinstance(rule, Repeat):
            return self._in_turn(children)[::-1]
        if isinstance(rule, First):
            wanted = self._language.ids(rule.kinds)
            return self._in_turn(sorted(children, key=lambda child: child[0] not in wanted))[::-1]
        tokens = self._tokens_in(children)
        return [self._gift(tokens, tokens, COMPUTED_FROM)]

    def _in_turn(self, nodes: Sequence[Child]) -> list[_Task]:
        """Tasks to run nodes; those that follow one another in the text are one task."""
        tasks: list[_Task] = []
        for _, _, start, end, _ in nodes:
            if tasks and tasks[-1][2] == start:
                start = tasks.pop()[1]  # noqa: PLW2901 - the task is to begin where the one before begins
            if start < end:
                tasks.append((_RUN, start, end))
        return tasks

    def _tokens_in(self, nodes: Sequence[Child]) -> list[int]:
        texts = self._texts
        found = [stop for _, _, start, end, _ in nodes for stop in range(start, end) if texts[stop] is not None]
        self._left -= len(found)
        return found

    # -- assignments

    def _assign(self, kind: int, children: Sequence[Child], rule: Assign) -> list[_Task]:
        lefts, rights = self._sides(kind, children, rule.left, rule.right)
        if not rights:
            if rule.declares:
                return [self._gift(self._tokens_in(lefts), [], COMES_FROM)]
            return [] if self._package else self._in_turn(children)  # x: int
        if self._package and not lefts:
            raise NoFlowError
        return self._make(lefts, rights, self._pairs(lefts, rights) if rule.pairs else None, rule.relation)

    def _make(
        self, lefts: list[Child], rights: list[Child], pairs: list[tuple[Child, Child]] | None, relation: str
    ) -> list[_Task]:
        """Run the right side, then give to the left."""
        if pairs is None:
            return [*self._in_turn(rights), self._gift(self._tokens_in(lefts), self._tokens_in(rights), relation)]
        gifts = [self._gift(self._tokens_in([left]), self._tokens_in([right]), relation) for left, right in pairs]
        return self._in_turn([right for _, right in pairs]) + gifts

    def _sides(self, kind: int, children: Sequence[Child], left: Side, right: Side) -> tuple[list[Child], list[Child]]:
        """A node's children on two sides; the package takes one of each."""
        fields = self._language.fields
        if len(children) == 2 and children[0][1] == fields.get(left) and children[1][1] == fields.get(right):
            return [children[0]], [children[1]]  # nearly always
        lefts, rights = self._side(children, left), self._side(children, right)
        if self._package:
            is_clause = kind in self._language.ids(_CLAUSE)
            return lefts[:1], list(children[-1:]) if is_clause else rights[:1]
        return lefts, rights

    def _side(self, children: Sequence[Child], side: Side) -> list[Child]:
        if isinstance(side, int):
            return list(children[side : side + 1])
        field = self._language.fields[side]
        return [child for child in children if child[1] == field]

    def _pairs(self, lefts: list[Child], rights: list[Child]) -> list[tuple[Child, Child]] | None:
        """What is assigned item by item, or None where all is assigned to all."""
        if self._package:
            if len(lefts) != 1 or len(rights) != 1:
                raise NoFlowError
            return self._pairs_of_package(lefts[0], rights[0])
        items = self._items(lefts)
        values = None if items is None else self._items(rights)
        if items is None or values is None or len(items) != len(values):
            return None
        return list(zip(items, values, strict=True))

    def _items(self, side: list[Child]) -> Sequence[Child] | None:
        """What stands on one side: several children, or the children of a list."""
        if len(side) != 1:
            return side or None
        return side[0][4] or () if self._language.roles[side[0][0]] == LIST else None

    def _pairs_of_package(self, left: Child, right: Child) -> list[tuple[Child, Child]] | None:
        """The package pairs the children of whatever stands on both sides: ``self`` and ``y`` in ``self.x = y.z``.

        A string's children are unknown to it, and it gives the text's dataflow up: ``self.x = "abc"`` has none.
        """
        commas, roles = self._language.ids(_COMMA), self._language.roles
        items, values = ([child for child in side[4] or () if child[0] not in commas] for side in (left, right))
        if not items or len(items) != len(values):
            return None
        if STRING in {roles[left[0]], roles[right[0]]}:
            raise NoFlowError
        return list(zip(items, values, strict=True))

    def _gift(self, takers: list[int], givers: list[int], relation: str) -> _Task:
        self._gifts.append((takers, givers, relation))
        return (_GIVE, len(self._gifts) - 1, 0)

    def _give(self, number: int) -> None:
        takers, givers, relation = self._gifts[number]
        # A default value without any token, (), leaves no edge in the package, though the name is known from there.
        silent = self._package and relation == COMES_FROM and not givers
        if self._loops:
            self._looped.add(number)
        texts, state, given = self._texts, self._state, self._given
        before = self._before[-1] if self._before else None
        for token in takers:
            if not silent:
                given[token] = number
            name = texts[token] or ""
            if before is not None and name not in before:
                before[name] = state.get(name)
            state[name] = token
        if takers:
            kept = self._kept
            for token in givers:
                kept[token] = 1
        self._left -= len(takers) + len(givers)

    # -- branches

    def _branch(self, children: Sequence[Child], rule: Branch) -> list[_Task]:
        kinds, otherwise = self._language.ids(rule.alternatives), self._language.ids(rule.otherwise)
        field = self._language.fields[rule.field] if rule.field else -1
        total = False
        ways: list[list[Child]] = [[]]
        for child in children:
            if child[0] in kinds or child[1] == field:
                ways.append([child])
            else:
                ways[0].append(child)
            total = total or child[0] in otherwise or child[1] == field
        if not total and len(ways) == 1:  # most: an if without an else
            self._left -= 2  # as many steps as the general way
            return [(_OPEN, 0, 0), *self._in_turn(children), (_MEET, 0, 0)]
        tasks: list[_Task] = [(_FORK, total, 0)]
        for way in ways if ways[0] else ways[1:]:
            tasks += [(_OPEN, 0, 0), *self._in_turn(way), (_SHUT, 0, 0)]
        return [*tasks, (_JOIN, 0, 0)]

    def _shut(self) -> None:
        """End a way: keep what it changed, and take it back."""
        before, state = self._before.pop(), self._state
        self._forks[-1][1].append({name: state[name] for name in before})
        for name, value in before.items():
            if value is None:
                del state[name]
            else:
                state[name] = value
        self._left -= len(before)

    def _meet(self) -> None:
        """End the only way: a name that it has changed may hold what it held before, or what it holds now."""
        before, state = self._before.pop(), self._state
        outer = self._before[-1] if self._before else None
        for name, value in before.items():
            if outer is not None and name not in outer:
                outer[name] = value
            if value is not None:
                self._left -= 1
                if value != state[name]:
                    self._joins.append((state[name], value))
                    self._joined.append(0)
                    state[name] = -len(self._joins)
        self._left -= 2 * len(before)

    def _join(self) -> None:
        """A name that some way has changed may hold what any of them left it with."""
        total, ways = self._forks.pop()
        state = self._state
        outer = self._before[-1] if self._before else None
        values: dict[str, list[int]] = {}
        for way in ways:
            for name, value in way.items():
                if name in values:
                    values[name].append(value)
                else:
                    values[name] = [value]
        for name, found in values.items():
            before = state.get(name)
            if outer is not None and name not in outer:
                outer[name] = before
            if before is not None and (len(found) < len(ways) or not total):
                found.append(before)
            self._left -= len(found)
            distinct = found if len(found) == 1 else tuple(dict.fromkeys(found))
            if len(distinct) == 1:
                state[name] = distinct[0]
            else:
                self._joins.append(tuple(distinct))
                self._joined.append(0)
                state[name] = -len(self._joins)

    # -- loops

    def _each(self, kind: int, children: Sequence[Child], rule: Each) -> list[_Task]:
        lefts, rights = self._sides(kind, children, rule.left, rule.right)
        pairs = self._pairs(lefts, rights) if self._package else None
        head = self._make(lefts, rights, pairs, COMPUTED_FROM)
        if self._package:  # it runs the last child, if that is the body and not an else
            body = self._language.ids(_BLOCK)
            return head + self._in_turn([child for child in children[-1:] if child[0] in body])
        return head + self._in_turn([child for child in children if child not in lefts and child not in rights])

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
        for name, number, seen, is_kept in zip(self._texts, self._given, self._read, self._kept, strict=True):
            if name is None:
                continue
            if number >= 0:
                _, givers, relation = self._gifts[number]
                if givers or is_kept:
                    if number not in sources:
                        sources[number] = self._source_names(number)
                    own = relation == COMES_FROM and sources[number] == (name,)
                    found.append((name, relation, None if own else sources[number]))
            elif seen == _KNOWN:
                found.append((name, COMES_FROM, None))
            elif seen and is_kept:
                found.append((name, COMES_FROM, ()))
        return found

    def _source_names(self, number: int) -> tuple[str, ...]:
        """The names that a gift is made from, each once.

        The package puts them in the order of a set of strings, which changes with the hash seed, wherever it merges two
        edges: in loops and in default values. The order of the alphabet stands for it. Elsewhere it merges nothing.
        """
        _, givers, relation = self._gifts[number]
        names = [self._texts[token] or "" for token in givers]
        if not self._package:
            return tuple(dict.fromkeys(names))
        merged = number in self._looped or (relation == COMES_FROM and len(names) > 1)
        return tuple(sorted(set(names))) if merged else tuple(names)


def anonymous(edges: Sequence[Edge], numbers: dict[tuple[int, ...], int]) -> Counter[Key]:
    """How often each edge is there when names are numbered in order of appearance, sources before what they make.

    ``numbers`` numbers lists of sources, for all the texts that are compared.
    """
    order: defaultdict[str, int] = defaultdict(count().__next__)
    lists: dict[int, int] = {}  # a list that many edges share is numbered once
    found: list[Key] = []
    for name, relation, sources in edges:
        if sources is None:  # most of them: a key that is quick to make
            found.append(order[name])
            continue
        number = lists.get(id(sources), -1)
        if number < 0:
            listed = tuple([order[source] for source in sources])
            number = lists[id(sources)] = numbers.setdefault(listed, len(numbers))
        found.append((order[name], relation, number))
    return Counter(found)
