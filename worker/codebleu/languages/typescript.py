"""TypeScript, by tree-sitter-typescript 0.23: JavaScript with types. Not TSX, where a cast reads as an element."""

from ..language import Table, words
from ..rules import COMES_FROM, Assign
from .javascript import KEYWORDS, LISTS, NAMES, RULES, STRINGS

_TYPES = words(
    "abstract any as asserts bigint boolean constructor declare infer is keyof module namespace never number object "
    "override readonly require satisfies string symbol type undefined unique unknown using"
)
_DECLARED = Assign("pattern", "value", COMES_FROM, declares=True)

TYPESCRIPT = Table(
    name="typescript",
    grammar="tree_sitter_typescript",
    entry="language_typescript",
    keywords=KEYWORDS | _TYPES,
    rules=RULES
    | {
        "required_parameter": _DECLARED,
        "optional_parameter": _DECLARED,
        "public_field_definition": Assign("name", "value", COMES_FROM, declares=True),
    },
    names=NAMES,
    strings=STRINGS,
    comments=frozenset({"comment", "html_comment"}),
    lists=LISTS,
)
