"""The process that scores: pairs come in as JSON lines, their CodeBLEU goes out as JSON lines.

It parses code that a model wrote and never runs it. ``worker.scoring`` starts it; it lives under limits of memory and
processor time, and dies with its parent. It has a fixed hash seed for the package ``codebleu``, whose results depend on
the order of sets; ``worker.codebleu`` needs none.
"""

import json
import resource
import signal
import sys
import textwrap
import time
from dataclasses import asdict
from importlib import metadata
from typing import Any, TextIO

from worker.codebleu import METRIC, score, score_sample
from worker.parent import die_with_parent

#: Address space in bytes. Ordinary pairs take 20 MB with everything imported; a hostile one takes what it gets.
MEMORY = 2 * 2**30


def prepare(text: str) -> str:
    """The text as it is scored: without the indentation that all its lines share, and without blank ends."""
    return textwrap.dedent(text).strip()


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Answer one request; ``seconds`` is the processor time it took."""
    # The timer's signal is left at its default, which ends the process even inside the parser's C code.
    signal.setitimer(signal.ITIMER_PROF, request["cpu_seconds"])
    before = time.process_time()
    found = {"pair": _pair, "corpus": _corpus}[request["op"]](request)
    signal.setitimer(signal.ITIMER_PROF, 0)
    return found | {"seconds": time.process_time() - before}


def _pair(request: dict[str, Any]) -> dict[str, Any]:
    candidate, reference, lang = prepare(request["candidate"]), prepare(request["reference"]), request["lang"]
    if request["scorer"] == "package":
        from worker import score_package  # noqa: PLC0415 - the package, only where it is asked for

        return score_package.measure(candidate, reference, lang)
    return {"score": asdict(score_sample(candidate, reference, lang, tuple(request["weights"])))}


def _corpus(request: dict[str, Any]) -> dict[str, Any]:
    """The package's corpus score; our own scorer knows it, too."""
    pairs = [(prepare(candidate), prepare(reference)) for candidate, reference in request["pairs"]]
    lang, weights = request["lang"], tuple(request["weights"])
    if request["scorer"] == "package":
        from worker import score_package  # noqa: PLC0415 - as above

        return score_package.corpus(pairs, lang, weights)
    found = score([got for got, _ in pairs], [want for _, want in pairs], lang, weights, "compat")
    names = ("codebleu", "ngram", "weighted_ngram", "syntax", "dataflow")
    return {"raw": {name: getattr(found, name) for name in names}, "reason": None}


def _limit() -> None:
    for what, most in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0)):
        resource.setrlimit(what, (most, most))


def _metrics() -> dict[str, str]:
    return {"hone": METRIC, "package": f"codebleu {metadata.version('codebleu')} (package)"}


def main() -> None:
    """Answer requests until the input ends."""
    replies: TextIO = sys.stdout
    sys.stdout = sys.stderr
    die_with_parent(int(sys.argv[1]))
    _limit()
    _send(replies, {"metrics": _metrics()})
    for line in sys.stdin:
        _send(replies, answer(json.loads(line)))


def _send(replies: TextIO, found: dict[str, Any]) -> None:
    replies.write(json.dumps(found) + "\n")
    replies.flush()


if __name__ == "__main__":
    main()
