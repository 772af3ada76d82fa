"""Ruby, by tree-sitter-ruby 0.23."""

from ..language import Table, words
from ..rules import COMES_FROM, Assign, Branch, Each, Repeat

#: Ruby 3.4's keywords.
_KEYWORDS = words(
    "__ENCODING__ __FILE__ __LINE__ BEGIN END alias and begin break case class def defined? do else elsif end ensure "
    "false for if in module next nil not or redo rescue retry return self super then true undef unless until when "
    "while yield"
)
_IF = Branch(field="alternative")
_PARAMETER = Assign("name", "value", COMES_FROM, pairs=False, declares=True)

RUBY = Table(
    name="ruby",
    grammar="tree_sitter_ruby",
    keywords=_KEYWORDS,
    names=frozenset({"identifier", "instance_variable", "class_variable", "global_variable"}),
    strings=frozenset({"string"}),
    lists=frozenset({"left_assignment_list", "right_assignment_list"}),
    rules={
        "optional_parameter": _PARAMETER,
        "keyword_parameter": _PARAMETER,
        "assignment": Assign(),
        "operator_assignment": Assign(),
        "if": _IF,
        "elsif": _IF,
        "unless": _IF,
        "if_modifier": Branch(),
        "unless_modifier": Branch(),
        "case": Branch(frozenset({"when", "else"})),
        "for": Each("pattern", "value"),
        "while": Repeat(),
        "until": Repeat(),
        "while_modifier": Repeat(),
        "until_modifier": Repeat(),
    },
)
