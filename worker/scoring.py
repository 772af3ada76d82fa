"""CodeBLEU (arXiv 2009.10297) of generated code, in a process with limits: by ``worker.codebleu``, or by the package.

A score is never one that only looks earned (docs/decisions/0016). A sample's headline is the weighted sum of its parts:

- ``empty`` (no code, or only comments), ``unparsable`` (a syntax error) and ``refused`` (over a limit) score 0 in every
  part; what the package says of them, where it is the scorer, stays in ``raw``;
- a reference without dataflow has nothing to match: the part is None and the other weights are scaled up to a sum of 1.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import Any, Literal

from core.errors import TrainingError
from core.specs import ScorerName
from worker import pulse

Parse = Literal["ok", "empty", "unparsable", "refused"]
Weights = tuple[float, float, float, float]
Pair = tuple[str, str]

#: The order of the weights.
PART_NAMES = ("ngram", "weighted_ngram", "syntax", "dataflow")
#: Bytes of one text that the package is given. The longest of 9,137 functions of the standard library has 13,000. Our
#: own scorer has limits of its own, which are wider.
MOST_BYTES = 20_000
#: Brackets open at once; 8 at most in those functions.
MOST_BRACKETS = 100
#: Processor seconds for a pair; one of 4 kB takes 0.06.
CPU_SECONDS = 10.0
#: Seconds by the clock for every second of processor time: the machine may be busy with other things.
_PATIENCE = 6.0
#: A child's end that is no exit code: the watchdog's.
_LATE = 1000


@dataclass(frozen=True)
class PairScore:
    """One answer against its reference. ``parse`` tells of the answer; scores are 0 to 1.

    ``reason`` says why a pair was refused, or that the reference does not parse. ``raw``: the package's five figures at
    equal weights, None where it is not the scorer or was not asked.
    """

    codebleu: float
    ngram: float
    weighted_ngram: float
    syntax: float
    dataflow: float | None
    parse: Parse
    reason: str | None = None
    raw: dict[str, float] | None = None

    @property
    def parts(self) -> dict[str, float | None]:
        """The four parts, by name."""
        return {name: getattr(self, name) for name in PART_NAMES}

    def passes(self, threshold: float) -> bool:
        """Whether this is code that reaches the threshold: nothing empty, unparsable or refused ever passes."""
        return self.parse == "ok" and self.codebleu >= threshold


def refusal(text: str, what: str) -> str | None:
    """Why a text is not given to the parser, or None."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return f"{what} contains half of a surrogate pair"
    if size > MOST_BYTES:
        return f"{what} is longer than {MOST_BYTES:,} bytes"
    if "\0" in text:
        return f"{what} contains the character NUL"
    if _open_brackets(text) > MOST_BRACKETS:
        return f"{what} has more than {MOST_BRACKETS} brackets open at once"
    return None


def _open_brackets(text: str) -> int:
    """The most brackets open at once, counting those in strings too: a scan that costs nothing, before any parser."""
    depth = deepest = 0
    for character in text:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth = max(0, depth - 1)
    return deepest


def headline(parts: dict[str, float | None], weights: Weights) -> float | None:
    """The weighted mean of the parts that there are; None when none of them has weight."""
    known = [(weight, parts[name]) for weight, name in zip(weights, PART_NAMES, strict=True)]
    weighed = [(weight, part) for weight, part in known if part is not None]
    total = sum(weight for weight, _ in weighed)
    return sum(weight * part for weight, part in weighed) / total if total else None


class Scorer:
    """Scores pairs in a child process, which is started again after a pair that ended it. A context manager."""

    def __init__(self, *, cpu_seconds: float = CPU_SECONDS) -> None:
        self._cpu_seconds = cpu_seconds
        self._child: subprocess.Popen[str] | None = None
        #: Processor seconds of the pairs so far: what the same pairs will about need as a corpus.
        self._spent = 0.0
        self._metrics: dict[str, str] = {}

    def __enter__(self) -> "Scorer":
        self._running()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the child."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.communicate()

    def metric(self, scorer: ScorerName = "hone") -> str:
        """Name and version of what a scorer's figures are."""
        self._running()
        return self._metrics[scorer]

    def score(
        self, candidate: str, reference: str, *, lang: str, weights: Weights, scorer: ScorerName = "hone"
    ) -> PairScore:
        """Score one pair; whatever the texts are, the result is a score or a named reason."""
        pulse.beat()
        if scorer == "package":
            reason = refusal(reference, "the reference") or refusal(candidate, "the answer")
            if reason:
                return _zero("refused", reason=reason)
        request = {"op": "pair", "candidate": candidate, "reference": reference, "lang": lang, "weights": weights}
        found = self._ask(request | {"scorer": scorer}, self._cpu_seconds)
        if isinstance(found, str):
            return _zero("refused", reason=found)
        self._spent += found["seconds"]
        return PairScore(**found["score"]) if scorer == "hone" else _pair_score(found, weights)

    def package_corpus(
        self, pairs: Sequence[Pair], *, lang: str, weights: Weights, scorer: ScorerName = "hone"
    ) -> dict[str, float] | None:
        """The package's corpus score over pairs that were scored "ok", for comparison with published ones.

        Our own scorer knows it for Python. None for no pairs, in other languages, and where the package fails.
        """
        if not pairs or (scorer == "hone" and lang != "python"):
            return None
        request = {"op": "corpus", "pairs": list(pairs), "lang": lang, "weights": weights, "scorer": scorer}
        found = self._ask(request, self._cpu_seconds + 2 * self._spent)
        return None if isinstance(found, str) else found["raw"]

    def _ask(self, request: dict[str, Any], cpu_seconds: float) -> dict[str, Any] | str:
        """The child's answer, or why there is none. A child that someone else killed gets a second chance."""
        found, code = self._try(request, cpu_seconds)
        if code == -signal.SIGKILL:
            found, code = self._try(request, cpu_seconds)
        return found if code == 0 else _end(code, cpu_seconds)

    def _try(self, request: dict[str, Any], cpu_seconds: float) -> tuple[dict[str, Any], int]:
        """The child's answer and 0, or nothing and how the child ended: its exit code, minus its signal, or _LATE."""
        child, late = self._running(), threading.Event()

        def give_up() -> None:
            late.set()
            child.kill()

        watchdog = threading.Timer(cpu_seconds * _PATIENCE, give_up)
        watchdog.start()
        try:
            answer = _exchange(child, json.dumps(request | {"cpu_seconds": cpu_seconds}))
        finally:
            watchdog.cancel()
        if answer.endswith("\n"):
            return json.loads(answer), 0
        code = child.wait()
        self.close()
        return {}, _LATE if late.is_set() else code or 1

    def _running(self) -> "subprocess.Popen[str]":
        if self._child is None or self._child.poll() is not None:
            self.close()
            self._child, self._metrics = _start()
        return self._child


def _start() -> tuple["subprocess.Popen[str]", dict[str, str]]:
    """A child that is ready, and its metrics' names by scorer. Raises TrainingError when it can't start."""
    root = str(Path(__file__).resolve().parents[1])
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    child = subprocess.Popen(  # noqa: S603 - the command is Hone's own
        [sys.executable, "-P", "-m", "worker.score_child", str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=kept | {"PYTHONPATH": path, "PYTHONHASHSEED": "0"},  # nothing else: no key or token is for the parser
        text=True,
        encoding="utf-8",
    )
    hello = _exchange(child, None)
    if not hello:
        raise TrainingError(
            f"The scorer ended as it started (exit code {child.wait()}). Install tree-sitter and the "
            "tree-sitter-… grammars as requirements.lock lists them.",
            code="scorer_unavailable",
        )
    return child, json.loads(hello)["metrics"]


def _exchange(child: "subprocess.Popen[str]", line: str | None) -> str:
    """Write a line, if there is one, and read one; "" when the child has ended."""
    if child.stdin is None or child.stdout is None:
        raise AssertionError("the child was started with pipes")
    try:
        if line is not None:
            child.stdin.write(line + "\n")
            child.stdin.flush()
        return child.stdout.readline()
    except BrokenPipeError:
        return ""


def _end(code: int, cpu_seconds: float) -> str:
    if code == _LATE:
        return f"scoring took more than {cpu_seconds * _PATIENCE:.0f} seconds"
    if code == -signal.SIGPROF:
        return f"scoring took more than {cpu_seconds:.0f} seconds of processor time"
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return f"scoring ended the scorer's process ({how})"


def _zero(
    parse: Parse, *, reason: str | None = None, raw: dict[str, float] | None = None, dataflow: float | None = 0.0
) -> PairScore:
    return PairScore(0.0, 0.0, 0.0, 0.0, dataflow, parse, reason, raw)


def _pair_score(found: dict[str, Any], weights: Weights) -> PairScore:
    parse, reason, raw = found["parse"], found["reason"], found["raw"]
    if parse != "ok":
        return _zero(parse, reason=reason, raw=raw, dataflow=0.0 if found["reference_has_dataflow"] else None)
    parts: dict[str, float | None] = {name: raw[name] for name in PART_NAMES}
    if not found["reference_has_dataflow"]:
        parts["dataflow"] = None
    score = headline(parts, weights)
    if score is None:
        return _zero("refused", reason="the reference has no dataflow, and no other part has weight", dataflow=None)
    return PairScore(score, raw["ngram"], raw["weighted_ngram"], raw["syntax"], parts["dataflow"], "ok", reason, raw)


def score_pairs(pairs: Sequence[Pair], *, lang: str, weights: Weights, scorer: ScorerName = "hone") -> list[PairScore]:
    """Score (candidate, reference) pairs, in order."""
    how: dict[str, Any] = {"lang": lang, "weights": weights, "scorer": scorer}
    with Scorer() as child:
        return [child.score(candidate, reference, **how) for candidate, reference in pairs]


def corpus(
    pairs: Sequence[Pair],
    scores: Sequence[PairScore],
    *,
    pass_threshold: float,
    truncated: int,
    package_corpus: dict[str, float] | None,
) -> dict[str, Any]:
    """The figures of a corpus: counts, and means over all samples (of the dataflow: over those that have one)."""
    passed = sum(score.passes(pass_threshold) for score in scores)
    counts = {parse: sum(score.parse == parse for score in scores) for parse in ("empty", "unparsable", "refused")}
    return {
        "codebleu": _mean([score.codebleu for score in scores]),
        **{name: _mean([score.parts[name] for score in scores]) for name in PART_NAMES},
        "package_corpus": package_corpus,
        "passed": passed,
        "failed": len(scores) - passed,
        **counts,
        "truncated": truncated,
        "exact_match": sum(candidate.strip() == reference.strip() for candidate, reference in pairs),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
