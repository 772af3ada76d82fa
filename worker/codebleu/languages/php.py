"""PHP, by tree-sitter-php 0.25. An answer needs no opening tag."""

from ..language import Table, words
from ..rules import COMES_FROM, Assign, Branch, Each, Repeat, Update

#: PHP 8.4's keywords and compile-time constants.
_KEYWORDS = words(
    "__halt_compiler abstract and array as break callable case catch class clone const continue declare default die "
    "do echo else elseif empty enddeclare endfor endforeach endif endswitch endwhile enum eval exit extends final "
    "finally fn for foreach from function global goto if implements include include_once instanceof insteadof "
    "interface isset list match namespace new or print private protected public readonly require require_once return "
    "static switch throw trait try unset use var while xor yield true false null self parent"
)
_PARAMETER = Assign("name", "default_value", COMES_FROM, pairs=False, declares=True)

PHP = Table(
    name="php",
    grammar="tree_sitter_php",
    entry="language_php",
    keywords=_KEYWORDS,
    names=frozenset({"variable_name"}),
    # A variable is two leaves, the sign and the name; only as a whole is it told from a function's name.
    strings=frozenset({"string", "encapsed_string", "heredoc", "nowdoc", "variable_name"}),
    comments=frozenset({"comment", "php_tag"}),
    opening="<?php ",
    rules={
        "simple_parameter": _PARAMETER,
        "property_promotion_parameter": _PARAMETER,
        "assignment_expression": Assign(pairs=False),
        "augmented_assignment_expression": Assign(),
        "update_expression": Update(),
        "if_statement": Branch(frozenset({"else_if_clause", "else_clause"}), frozenset({"else_clause"})),
        "switch_block": Branch(frozenset({"case_statement", "default_statement"}), frozenset({"default_statement"})),
        "for_statement": Repeat(),
        "foreach_statement": Each(1, 0),
        "while_statement": Repeat(),
        "do_statement": Repeat(),
    },
)
