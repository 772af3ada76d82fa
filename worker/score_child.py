"""The process that scores: pairs come in as JSON lines, what the package ``codebleu`` measured goes out as JSON lines.

It parses code that a model wrote and never runs it. ``worker.scoring`` starts it with a fixed hash seed, because the
package's result depends on the order of sets; it lives under limits of memory and processor time, and dies with its
parent.
"""

import json
import logging
import resource
import signal
import sys
import textwrap
import time
from collections.abc import Callable
from functools import cache
from importlib import metadata
from typing import Any, TextIO

import codebleu
from codebleu import dataflow_match
from codebleu.utils import get_tree_sitter_language
from tree_sitter import Node, Parser

from worker.parent import die_with_parent

#: Address space in bytes. Ordinary pairs take 20 MB with everything imported; a hostile one of 20 kB takes what it
#: gets.
MEMORY = 2 * 2**30
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


class _TooHardError(Exception):
    """Text that the package must not be given, or did not get through; the message is the reason."""


def prepare(text: str) -> str:
    """The text as it is scored: without the indentation that all its lines share, and without blank ends."""
    return textwrap.dedent(text).strip()


def measure(candidate: str, reference: str, lang: str) -> dict[str, Any]:
    """What one pair comes to: ``parse`` (of the candidate), ``reason``, ``raw`` and ``reference_has_dataflow``.

    ``raw`` holds the package's five figures under our names, at equal weights, or None where the pair was refused.
    """
    candidate, reference = prepare(candidate), prepare(reference)
    try:
        wanted, got = _parse(reference, lang, "the reference"), _parse(candidate, lang, "the answer")
        if _is_empty(wanted):
            raise _TooHardError("the reference is empty")
        raw = _package([candidate], [reference], lang, (0.25, 0.25, 0.25, 0.25))
        has_dataflow = raw["dataflow"] > 0 or bool(_dataflow(reference, lang))
    except _TooHardError as error:
        return {"parse": "refused", "reason": str(error), "raw": None, "reference_has_dataflow": True}
    reason = "the reference does not parse" if wanted.has_error else None
    parse = "empty" if _is_empty(got) else "unparsable" if got.has_error else "ok"
    return {"parse": parse, "reason": reason, "raw": raw, "reference_has_dataflow": has_dataflow}


def _parse(text: str, lang: str, what: str) -> Node:
    root = _parser(lang).parse(text.encode()).root_node
    if _depth(root) > DEPTH:
        raise _TooHardError(f"{what} is nested more than {DEPTH} levels deep")
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
    """The package's five figures over a corpus, under our names. Raises _TooHardError where it fails."""
    _swallowed.clear()
    try:
        found = codebleu.calc_codebleu([[text] for text in references], candidates, lang=lang, weights=weights)
    except MemoryError:
        raise _TooHardError(f"scoring needs more than {MEMORY / 2**30:.0f} GiB of memory") from None
    except Exception as error:  # whatever breaks in the package is this pair's result, not the end of the run
        raise _TooHardError(f"the package codebleu failed: {type(error).__name__}: {error!s:.200}") from error
    if _swallowed:
        raise _TooHardError(f"the package codebleu ran out of its limits: {_swallowed[0]}")
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


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Answer one request; ``seconds`` is the processor time it took."""
    # The timer's signal is left at its default, which ends the process even inside the parser's C code.
    signal.setitimer(signal.ITIMER_PROF, request["cpu_seconds"])
    before = time.process_time()
    if request["op"] == "pair":
        found = measure(request["candidate"], request["reference"], request["lang"])
    else:
        found = _corpus(request)
    signal.setitimer(signal.ITIMER_PROF, 0)
    return found | {"seconds": time.process_time() - before}


def _corpus(request: dict[str, Any]) -> dict[str, Any]:
    candidates = [prepare(candidate) for candidate, _ in request["pairs"]]
    references = [prepare(reference) for _, reference in request["pairs"]]
    try:
        return {"raw": _package(candidates, references, request["lang"], tuple(request["weights"])), "reason": None}
    except _TooHardError as error:
        return {"raw": None, "reason": str(error)}


def _limit() -> None:
    for what, most in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0)):
        resource.setrlimit(what, (most, most))
    # The package takes a Python frame or two a level of the tree, and calls a RecursionError "no dataflow".
    sys.setrecursionlimit(20 * DEPTH)


def main() -> None:
    """Answer requests until the input ends."""
    replies: TextIO = sys.stdout
    sys.stdout = sys.stderr
    die_with_parent(int(sys.argv[1]))
    _limit()
    logging.disable(logging.WARNING)  # the package warns at each reference without dataflow; the result says it
    for name, extract in dataflow_match.dfg_function.items():
        dataflow_match.dfg_function[name] = _noting(extract)
    _send(replies, {"metric": f"codebleu {metadata.version('codebleu')} (package)"})
    for line in sys.stdin:
        _send(replies, answer(json.loads(line)))


def _send(replies: TextIO, found: dict[str, Any]) -> None:
    replies.write(json.dumps(found) + "\n")
    replies.flush()


if __name__ == "__main__":
    main()
