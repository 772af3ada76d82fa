"""Rust, by tree-sitter-rust 0.24."""

from ..language import Table, words
from ..rules import COMES_FROM, Assign, Branch, Each, Repeat

#: The strict, reserved and weak keywords of the Rust reference, 2024 edition.
_KEYWORDS = words(
    "as async await break const continue crate dyn else enum extern false fn for if impl in let loop match mod move "
    "mut pub ref return self Self static struct super trait true type unsafe use where while abstract become box do "
    "final gen macro override priv try typeof unsized virtual yield macro_rules! raw safe union"
)

RUST = Table(
    name="rust",
    grammar="tree_sitter_rust",
    keywords=_KEYWORDS,
    names=frozenset({"identifier", "shorthand_field_identifier"}),
    strings=frozenset({"string_literal", "raw_string_literal"}),
    comments=frozenset({"line_comment", "block_comment"}),
    lists=frozenset({"tuple_pattern", "tuple_expression"}),
    rules={
        "let_declaration": Assign("pattern", "value", COMES_FROM, declares=True),
        "let_condition": Assign("pattern", "value", COMES_FROM),
        "assignment_expression": Assign(),
        "compound_assignment_expr": Assign(),
        "if_expression": Branch(frozenset({"else_clause"}), frozenset({"else_clause"})),
        "match_block": Branch(frozenset({"match_arm"}), frozenset({"match_arm"})),
        "for_expression": Each("pattern", "value"),
        "while_expression": Repeat(),
        "loop_expression": Repeat(),
    },
)
