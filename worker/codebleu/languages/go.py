"""Go, by tree-sitter-go 0.25."""

from ..language import Table, words
from ..rules import COMES_FROM, Assign, Branch, Repeat, Update

#: The 25 keywords of Go's specification, and the constants that every package knows.
_KEYWORDS = words(
    "break case chan const continue default defer else fallthrough for func go goto if import interface map package "
    "range return select struct switch type var true false nil iota"
)
_CASES = Branch(frozenset({"expression_case", "type_case", "communication_case", "default_case"}))

GO = Table(
    name="go",
    grammar="tree_sitter_go",
    keywords=_KEYWORDS,
    strings=frozenset({"interpreted_string_literal", "raw_string_literal"}),
    lists=frozenset({"expression_list"}),
    rules={
        "var_spec": Assign("name", "value", COMES_FROM, declares=True),
        "const_spec": Assign("name", "value", COMES_FROM, declares=True),
        "short_var_declaration": Assign(relation=COMES_FROM),
        "assignment_statement": Assign(),
        "inc_statement": Update(),
        "dec_statement": Update(),
        "if_statement": Branch(field="alternative"),
        "expression_switch_statement": _CASES,
        "type_switch_statement": _CASES,
        "select_statement": _CASES,
        "range_clause": Assign(pairs=False),
        "for_statement": Repeat(),
    },
)
