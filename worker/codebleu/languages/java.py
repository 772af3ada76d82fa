"""Java, by tree-sitter-java 0.23."""

from ..language import Table, words
from ..rules import COMES_FROM, Assign, Branch, Each, Repeat, Update

#: Java 25's reserved words and literals, and the words that are reserved in places.
_KEYWORDS = words(
    "abstract assert boolean break byte case catch char class const continue default do double else enum extends "
    "final finally float for goto if implements import instanceof int interface long native new package private "
    "protected public return short static strictfp super switch synchronized this throw throws transient try void "
    "volatile while true false null var record sealed permits yield when"
)

JAVA = Table(
    name="java",
    grammar="tree_sitter_java",
    keywords=_KEYWORDS,
    strings=frozenset({"string_literal"}),
    comments=frozenset({"line_comment", "block_comment"}),
    rules={
        "variable_declarator": Assign("name", "value", COMES_FROM, declares=True),
        "assignment_expression": Assign(),
        "update_expression": Update(),
        "if_statement": Branch(field="alternative"),
        "switch_block": Branch(frozenset({"switch_block_statement_group", "switch_rule"})),
        "for_statement": Repeat(),
        "enhanced_for_statement": Each("name", "value"),
        "while_statement": Repeat(),
        "do_statement": Repeat(),
    },
)
