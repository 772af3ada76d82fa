"""A language: its grammar, its keywords and its rules, and the same by the grammar's numbers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module

from tree_sitter import Language as Grammar
from tree_sitter import Parser

from .rules import First, Rule, Rules

#: What tree-sitter calls a node that it could make nothing of; the highest number of a kind.
ERROR = 65_535

# What a kind is to the reading of a tree. A sign is a keyword, an operator or a bracket: an anonymous node.
# Of the kinds from RULED on, the children matter: a list is what an assignment may pair off.
PLAIN, SIGN, COMMENT, RULED, STRING, DOC, LIST = range(7)


def words(text: str) -> frozenset[str]:
    """The words of a text, as a table's keywords."""
    return frozenset(text.split())


@dataclass(frozen=True)
class Table:
    """What is to be said of one language; ``languages/`` holds one a module. Kinds are names of the grammar's nodes."""

    name: str
    #: Module of the grammar's wheel, and the function in it that gives the grammar.
    grammar: str
    keywords: frozenset[str]
    rules: Rules
    entry: str = "language"
    #: Kinds that name a variable: one that is not known yet becomes known.
    names: frozenset[str] = frozenset({"identifier"})
    #: Kinds that are one token, whatever is inside.
    strings: frozenset[str] = frozenset()
    #: Kinds that are no code.
    comments: frozenset[str] = frozenset({"comment"})
    #: Statements that do nothing when there is only a string in them: Python's docstrings.
    string_statements: frozenset[str] = frozenset()
    #: Kinds that hold items which an assignment may pair off.
    lists: frozenset[str] = frozenset()
    #: Text that the grammar needs before code, such as PHP's opening tag; put before a text that does not hold it.
    opening: str = ""


@dataclass(frozen=True, eq=False)
class Loaded:
    """A table with its parser, and kinds and fields as the grammar's numbers."""

    table: Table
    parser: Parser
    kind_names: tuple[str, ...]
    #: What each kind is, one byte for every number that there can be.
    roles: bytes
    rules: Mapping[int, Rule]
    names: frozenset[int]
    fields: Mapping[str | int, int]
    kinds: Mapping[str, frozenset[int]] = field(repr=False)
    _ids: dict[frozenset[str], frozenset[int]] = field(default_factory=dict, repr=False)

    def ids(self, kinds: frozenset[str]) -> frozenset[int]:
        """The numbers of kinds; a name may have several, anonymous ones included."""
        found = self._ids.get(kinds)
        if found is None:
            found = self._ids[kinds] = frozenset().union(*(self.kinds.get(kind, frozenset()) for kind in kinds))
        return found


class UnsupportedLanguageError(ValueError):
    """The language has no table here, or its grammar is not installed; the message says which."""


@cache
def load(name: str) -> Loaded:
    """A language by its name. Raises UnsupportedLanguageError."""
    from .languages import TABLES  # noqa: PLC0415 - the tables import this module

    table = TABLES.get(name)
    if table is None:
        raise UnsupportedLanguageError(f"there is no CodeBLEU for {name!r}; there is for {', '.join(sorted(TABLES))}")
    return loaded(table)


def loaded(table: Table) -> Loaded:
    """A table with its grammar. Raises UnsupportedLanguageError when the grammar is not installed."""
    try:
        grammar = Grammar(getattr(import_module(table.grammar), table.entry)())
    except ModuleNotFoundError:
        wheel = table.grammar.replace("_", "-")
        raise UnsupportedLanguageError(f"CodeBLEU for {table.name!r} needs the package {wheel}; install it") from None
    count = grammar.node_kind_count
    names = tuple(grammar.node_kind_for_id(number) or "" for number in range(count))
    named = tuple(grammar.node_kind_is_named(number) for number in range(count))
    kinds: dict[str, frozenset[int]] = {}
    for number, name in enumerate(names):
        kinds[name] = kinds.get(name, frozenset()) | {number}

    def ids(wanted: frozenset[str]) -> frozenset[int]:
        missing = wanted - kinds.keys()
        if missing:
            raise UnsupportedLanguageError(f"{table.grammar} as installed has no {', '.join(sorted(missing))}")
        return frozenset(number for kind in wanted for number in kinds[kind] if named[number])

    rules = {number: rule for kind, rule in table.rules.items() for number in ids(frozenset({kind}))}
    firsts = [rule for rule in table.rules.values() if isinstance(rule, First)]
    # A text with errors has the same nodes under an error as elsewhere under their own.
    if firsts:
        rules[ERROR] = firsts[0]
    roles = bytearray(ERROR + 1)
    signs = frozenset(number for number in range(count) if not named[number])
    for role, numbers in (
        (SIGN, signs),
        (RULED, frozenset(rules)),
        (COMMENT, ids(table.comments)),
        (STRING, ids(table.strings)),
        (DOC, ids(table.string_statements)),
        (LIST, ids(table.lists)),
    ):
        for number in numbers:
            roles[number] = role
    fields: dict[str | int, int] = {
        grammar.field_name_for_id(number) or "": number for number in range(1, grammar.field_count + 1)
    }
    return Loaded(
        table,
        Parser(grammar),
        names,
        bytes(roles),
        rules,
        ids(table.names),
        fields,
        kinds,
    )
