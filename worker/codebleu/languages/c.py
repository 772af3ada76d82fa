"""C, by tree-sitter-c 0.24."""

from ..language import Table, words
from ..rules import COMES_FROM, Assign, Branch, Repeat, Rule, Update

#: C23's keywords, the older spellings of some, and the constant that every program knows.
KEYWORDS = words(
    "alignas alignof auto bool break case char const constexpr continue default do double else enum extern false "
    "float for goto if inline int long nullptr register restrict return short signed sizeof static static_assert "
    "struct switch thread_local true typedef typeof typeof_unqual union unsigned void volatile while _Alignas "
    "_Alignof _Atomic _BitInt _Bool _Complex _Generic _Imaginary _Noreturn _Static_assert _Thread_local NULL"
)
#: C++ has these, too.
RULES: dict[str, Rule] = {
    "init_declarator": Assign("declarator", "value", COMES_FROM, pairs=False),
    "assignment_expression": Assign(),
    "update_expression": Update(),
    "if_statement": Branch(frozenset({"else_clause"}), frozenset({"else_clause"})),
    "for_statement": Repeat(),
    "while_statement": Repeat(),
    "do_statement": Repeat(),
}
STRINGS = frozenset({"string_literal", "char_literal"})

C = Table(name="c", grammar="tree_sitter_c", keywords=KEYWORDS, rules=RULES, strings=STRINGS)
