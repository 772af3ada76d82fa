"""JavaScript, by tree-sitter-javascript 0.25."""

from ..language import Table, words
from ..rules import COMES_FROM, Assign, Branch, Each, Repeat, Rule, Update

#: The reserved words of ECMAScript 2025, the strict ones among them, and those that are words only in places.
KEYWORDS = words(
    "await break case catch class const continue debugger default delete do else enum export extends false finally "
    "for function if import in instanceof new null return super switch this throw true try typeof var void while with "
    "yield let static implements interface package private protected public async of get set"
)

#: TypeScript has these, too.
RULES: dict[str, Rule] = {
    "variable_declarator": Assign("name", "value", COMES_FROM, declares=True),
    "assignment_expression": Assign(),
    "augmented_assignment_expression": Assign(),
    "assignment_pattern": Assign(relation=COMES_FROM, pairs=False),
    "update_expression": Update(),
    "if_statement": Branch(frozenset({"else_clause"}), frozenset({"else_clause"})),
    "switch_body": Branch(frozenset({"switch_case", "switch_default"}), frozenset({"switch_default"})),
    "for_statement": Repeat(),
    "for_in_statement": Each(),
    "while_statement": Repeat(),
    "do_statement": Repeat(),
}
NAMES = frozenset({"identifier", "shorthand_property_identifier", "shorthand_property_identifier_pattern"})
STRINGS = frozenset({"string", "template_string"})
LISTS = frozenset({"array_pattern", "array"})

JAVASCRIPT = Table(
    name="javascript",
    grammar="tree_sitter_javascript",
    keywords=KEYWORDS,
    rules=RULES | {"field_definition": Assign("property", "value", COMES_FROM, declares=True)},
    names=NAMES,
    strings=STRINGS,
    comments=frozenset({"comment", "html_comment"}),
    lists=LISTS,
)
