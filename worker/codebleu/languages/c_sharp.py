"""C#, by tree-sitter-c-sharp 0.23."""

from ..language import Table, words
from ..rules import COMES_FROM, Assign, Branch, Each, Repeat, Update

#: C# 14's keywords, and the words that are keywords in places.
_KEYWORDS = words(
    "abstract as base bool break byte case catch char checked class const continue decimal default delegate do double "
    "else enum event explicit extern false finally fixed float for foreach goto if implicit in int interface internal "
    "is lock long namespace new null object operator out override params private protected public readonly ref return "
    "sbyte sealed short sizeof stackalloc static string struct switch this throw true try typeof uint ulong unchecked "
    "unsafe ushort using virtual void volatile while add alias and ascending async await by descending dynamic equals "
    "extension field file from get global group init into join let managed nameof nint not notnull nuint on or "
    "orderby partial record remove required scoped select set unmanaged value var when where with yield"
)

C_SHARP = Table(
    name="c_sharp",
    grammar="tree_sitter_c_sharp",
    keywords=_KEYWORDS,
    strings=frozenset(
        {"string_literal", "verbatim_string_literal", "raw_string_literal", "interpolated_string_expression"}
    ),
    rules={
        "variable_declarator": Assign(0, 1, COMES_FROM, pairs=False, declares=True),
        "assignment_expression": Assign(),
        "postfix_unary_expression": Update(),
        "if_statement": Branch(field="alternative"),
        "switch_body": Branch(frozenset({"switch_section"})),
        "for_statement": Repeat(),
        "foreach_statement": Each(),
        "while_statement": Repeat(),
        "do_statement": Repeat(),
    },
)
