"""Python, by tree-sitter-python 0.25."""

from ..language import Table, words
from ..rules import COMES_FROM, Assign, Branch, Each, First, Repeat

#: Python 3.14's keywords, and the soft ones that open statements.
_KEYWORDS = words(
    "False None True and as assert async await break class continue def del elif else except finally for from global "
    "if import in is lambda nonlocal not or pass raise return try while with yield match case type"
)
_CLAUSES_FIRST = First(frozenset({"for_in_clause"}))

PYTHON = Table(
    name="python",
    grammar="tree_sitter_python",
    keywords=_KEYWORDS,
    strings=frozenset({"string"}),
    comments=frozenset({"comment", "line_continuation"}),
    string_statements=frozenset({"expression_statement"}),
    lists=frozenset({"pattern_list", "tuple_pattern", "list_pattern", "expression_list", "tuple", "list"}),
    rules={
        "assignment": Assign(),
        "augmented_assignment": Assign(),
        "for_in_clause": Assign(pairs=False),
        "default_parameter": Assign("name", "value", COMES_FROM, pairs=False, declares=True),
        "if_statement": Branch(frozenset({"elif_clause", "else_clause"}), frozenset({"else_clause"})),
        "while_statement": Repeat(),
        "for_statement": Each(),
        "list_comprehension": _CLAUSES_FIRST,
        "set_comprehension": _CLAUSES_FIRST,
        "dictionary_comprehension": _CLAUSES_FIRST,
        "generator_expression": _CLAUSES_FIRST,
    },
)
