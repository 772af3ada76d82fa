"""Scoring by the package ``codebleu`` 0.7.0, in the process that ``worker.score_child`` runs.

The package recurses over a parse tree, in C too, takes hours for some short texts, and takes any failure of its
dataflow extraction for "no dataflow"; so texts are looked at before they are given to it, and failures are noted.
"""

import logging
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import codebleu
from codebleu import dataflow_match
from codebleu.utils import get_tree_sitter_language
from tree_sitter import Node, Parser

#: Levels of a parse tree. The package recurses over it, in C too: 50,000 levels end in a segmentation fault, and its
#: time grows with size times depth. The deepest of 9,137 functions of the standard library has 29 levels.
DEPTH = 200

#: Names of the package's results, and ours.
PARTS = {
    "codebleu": "codebleu",
    "ngram": "ngram_match_score",
    "weighted_ngram": "weighted_ngram_match_score",
    "syntax": "syntax_match_score",
    "dataflow": "dataflow_match_score",
}


class TooHardError(Exception):
    """Text that the package must not be given, or did not get through; the message is the reason."""


def measure(candidate: str, reference: str, lang: str) -> dict[str, Any]:
    """What one pair comes to: ``parse`` (of the candidate), ``reason``, ``raw`` and ``reference_has_dataflow``.

    ``raw`` holds the package's five figures under our names, at equal weights, or None where the pair was refused.
    """
    try:
        wanted, got = _parse(reference, lang, "the reference"), _parse(candidate, lang, "the answer")
        if _is_empty(wanted):
            raise TooHardError("the reference is empty")
        raw = _package([candidate], [reference], lang, (0.25, 0.25, 0.25, 0.25))
        has_dataflow = raw["dataflow"] > 0 or bool(_dataflow(reference, lang))
    except TooHardError as error:
        return {"parse": "refused", "reason": str(error), "raw": None, "reference_has_dataflow": True}
    reason = "the reference does not parse" if wanted.has_error else None
    parse = "empty" if _is_empty(got) else "unparsable" if got.has_error else "ok"
    return {"parse": parse, "reason": reason, "raw": raw, "reference_has_dataflow": has_dataflow}


def _parse(text: str, lang: str, what: str) -> Node:
    root = _parser(lang).parse(text.encode()).root_node
    if _depth(root) > DEPTH:
        raise TooHardError(f"{what} is nested more than {DEPTH} levels deep")
    return root


@cache
def _parser(lang: str) -> Parser:
    return Parser(get_tree_sitter_language(lang))


def _depth(root: Node) -> int:
    """Levels of a tree, counted without recursion, up to one more than the limit."""
    cursor, deepest = root.walk(), 0
    while deepest <= DEPTH:
        deepest = max(deepest, cursor.depth)
        if cursor.goto_first_child():
            continue
        while not cursor.goto_next_sibling():
            if not cursor.goto_parent():
                return deepest
    return deepest


def _is_empty(root: Node) -> bool:
    return all(child.type == "comment" for child in root.children)


def _dataflow(reference: str, lang: str) -> list[Any]:
    """The reference's dataflow, as the package extracts it; empty where there is none."""
    plain = reference
    try:
        plain = dataflow_match.remove_comments_and_docstrings(reference, lang)
    except Exception as error:  # the package goes on with the comments in, so this must too
        logging.getLogger(__name__).debug("comments stay in: %s", error)
    flow: list[Any] = dataflow_match.get_data_flow(plain, [_parser(lang), dataflow_match.dfg_function[lang]])
    return flow


def _package(
    candidates: list[str], references: list[str], lang: str, weights: tuple[float, float, float, float]
) -> dict[str, float]:
    """The package's five figures over a corpus, under our names. Raises TooHardError where it fails."""
    _swallowed.clear()
    try:
        found = codebleu.calc_codebleu([[text] for text in references], candidates, lang=lang, weights=weights)
    except MemoryError:
        raise TooHardError("scoring by the package needs more memory than it is given") from None
    except Exception as error:  # whatever breaks in the package is this pair's result, not the end of the run
        raise TooHardError(f"the package codebleu failed: {type(error).__name__}: {error!s:.200}") from error
    if _swallowed:
        raise TooHardError(f"the package codebleu ran out of its limits: {_swallowed[0]}")
    return {ours: float(found[theirs]) for ours, theirs in PARTS.items()}


#: The package takes any exception of its dataflow extraction for "no dataflow". Running out of memory or stack is
#: noted here.
_swallowed: list[str] = []


def _noting(extract: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*given: Any) -> Any:
        try:
            return extract(*given)
        except (MemoryError, RecursionError) as error:
            _swallowed.append(type(error).__name__)
            raise

    return wrapped


def corpus(pairs: list[tuple[str, str]], lang: str, weights: tuple[float, float, float, float]) -> dict[str, Any]:
    """The package's figures over pairs as one corpus: ``raw``, None where it fails, and ``reason``."""
    try:
        return {"raw": _package([got for got, _ in pairs], [want for _, want in pairs], lang, weights), "reason": None}
    except TooHardError as error:
        return {"raw": None, "reason": str(error)}


def _set_up() -> None:
    # The package takes a Python frame or two a level of the tree, and calls a RecursionError "no dataflow".
    sys.setrecursionlimit(20 * DEPTH)
    logging.disable(logging.WARNING)  # it warns at each reference without dataflow; the result says it
    for name, extract in dataflow_match.dfg_function.items():
        dataflow_match.dfg_function[name] = _noting(extract)


_set_up()
