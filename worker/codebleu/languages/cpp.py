"""C++, by tree-sitter-cpp 0.23: C with more."""

from ..language import Table, words
from ..rules import COMES_FROM, Assign, Each
from .c import KEYWORDS, RULES, STRINGS

_MORE = words(
    "and and_eq asm bitand bitor catch char8_t char16_t char32_t class co_await co_return co_yield compl concept "
    "const_cast consteval constinit decltype delete dynamic_cast explicit export final friend import module mutable "
    "namespace new noexcept not not_eq operator or or_eq override private protected public reinterpret_cast requires "
    "static_cast template this throw try typeid typename using virtual wchar_t xor xor_eq"
)

CPP = Table(
    name="cpp",
    grammar="tree_sitter_cpp",
    keywords=KEYWORDS | _MORE,
    rules=RULES
    | {
        "optional_parameter_declaration": Assign("declarator", "default_value", COMES_FROM, pairs=False, declares=True),
        "for_range_loop": Each("declarator", "right"),
    },
    strings=STRINGS | {"raw_string_literal"},
)
