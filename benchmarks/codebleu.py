"""Our CodeBLEU beside the package ``codebleu`` 0.7.0: how fast, and how far apart. One process, one core.

    python -m benchmarks.codebleu [--mbpp mbpp.jsonl] [--pairs 2000] [--pinned-python VENV/bin/python]

Pairs are functions of the standard library (and MBPP's solutions, where a file is given) with answers made from them by
renaming, deleting, reordering and cutting. Times are processor time. Each scores all pairs of a size after one another,
as a corpus is scored, and in turn with the others, three times over; of a pair's three times the least counts, which
other processes have disturbed least. "New": both texts are seen for the first time; "known": the reference was scored
before, as for the second model's answers of an evaluation. --pinned-python names an interpreter that has codebleu with
the grammar that it pins, tree-sitter 0.22.3 and tree-sitter-python 0.21.0.
"""

import argparse
import gc
import json
import logging
import os
import random
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from statistics import median

import codebleu

from tests.worker.codebleu import oracle, pairs
from worker.codebleu import METRIC, analysis, score_sample

SIZES = (300, 600, 1_100, 2_200, 4_400)
SEEDS = (0, 1, 2)
ROUNDS = 3
_PINNED = """
import codebleu, json, logging, sys
logging.disable(logging.WARNING)
for line in sys.stdin:
    answer, reference = json.loads(line)
    found = codebleu.calc_codebleu([[reference]], [answer], "python")
    print(json.dumps([found[part] for part in %r]))
"""


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"


def milliseconds(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return (time.process_time() - began) * 1_000


def by_package(answer: str, reference: str) -> None:
    codebleu.calc_codebleu([[reference]], [answer], "python")


def by_compat(answer: str, reference: str) -> None:
    score_sample(answer, reference, mode="compat")


def forget() -> None:
    """Have the scorer know no text."""
    analysis._per_thread.readers.clear()


def speed(codes: Sequence[str]) -> None:
    rng = random.Random(1)
    print(f"\nMilliseconds a pair: the least of {ROUNDS} times, medians over pairs")
    print("characters  pairs  package   ours, new    ours, known  compat, new")
    for size in SIZES:
        near = [code for code in codes if 0.8 * size < len(code) < 1.25 * size][:60]
        made = [(pairs.renamed(code, rng), code) for code in near]
        rounds = [_round(made) for _ in range(ROUNDS)]
        package, ours, known, compat = (median(map(min, *columns)) for columns in zip(*rounds, strict=True))
        print(
            f"{size:10,}  {len(near):5}  {package:7.2f}  {ours:6.2f} {package / ours:5.1f}x  "
            f"{known:6.2f} {package / known:5.1f}x  {compat:6.2f} {package / compat:5.1f}x"
        )


def _round(made: Sequence[tuple[str, str]]) -> list[list[float]]:
    """The times of the pairs by the package, by ours, by ours with references that it knows, and by compat."""
    forget()
    scorers = (by_package, score_sample, score_sample, by_compat)
    found = []
    for scorer in scorers:
        gc.collect()  # nobody pays for what another has left
        found.append([milliseconds(partial(scorer, *pair)) for pair in made])
    return found


def hostile() -> None:
    lines = "".join(
        f"def f{n}(a, b):\n    c = a + b * {n}\n    if c:\n        a = c\n    return a\n\n" for n in range(200)
    )
    cases = {
        "1,200 lines": lines,
        "one line of 3,000 operations": "x = " + " + ".join(f"a{n}" for n in range(3_001)),
        "50,000 parentheses": "(" * 50_000 + ")" * 50_000,
    }
    print("\nHostile texts, ms (a text with a comment more against itself, so that both are read)")
    for name, text in cases.items():
        for mode in ("default", "compat"):
            score_both = partial(score_sample, f"{text} # once more", text, mode=mode)
            times = []
            for _ in range(5):
                forget()
                times.append(milliseconds(score_both))
            found = score_both()
            print(f"{name:30} {mode:8} {median(times):8.1f}  {found.parse} {found.reason or round(found.codebleu, 3)}")


def agreement(made: Sequence[tuple[str, str]]) -> None:
    steady, largest, differing = oracle.differing(made, SEEDS)
    print(f"\ncompat against the package, {len(made):,} pairs under the hash seeds {SEEDS}")
    print(f"  the package gives the same under every seed: {steady:,}; largest difference of ours there: {largest:.1e}")
    print(f"  over 1e-9: {len(differing)}")
    for answer, reference in differing[:3]:
        print(json.dumps([answer, reference]))


def pinned(made: Sequence[tuple[str, str]], python: Path) -> None:
    """How far the grammar that the package pins is from the current one, by the package itself."""
    done = subprocess.run(
        [python, "-c", _PINNED % (oracle.PARTS,)],
        input="\n".join(map(json.dumps, made)),
        env=os.environ | {"PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    then, now = [json.loads(line) for line in done.stdout.splitlines()], oracle.ask(made, 0)
    both = [(old, new) for old, new in zip(then, now, strict=True) if new is not None]
    print(f"\nThe package on the grammar that it pins against the package on the current one, {len(both):,} pairs")
    for place, part in enumerate(oracle.PARTS):
        apart = [abs(old[place] - new[place]) for old, new in both]
        differ = sum(distance > 1e-9 for distance in apart)
        print(f"  {part:28} differs in {differ:5,}; mean {sum(apart) / len(apart):.4f}, largest {max(apart):.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mbpp", type=Path)
    parser.add_argument("--pairs", type=int, default=2_000, help="to hold to the package; 0 for times only")
    parser.add_argument("--pinned-python", type=Path)
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    codes = pairs.functions(6_000)
    versions = ", ".join(
        f"{name} {metadata.version(name)}" for name in ("codebleu", "tree-sitter", "tree-sitter-python")
    )
    print(f"{METRIC}; {versions}; {processor()}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for mode in ("default", "compat"):  # the grammar is loaded once, before times are taken
        score_sample("x = 1", "x = 1", mode=mode)
    speed(codes)
    hostile()
    if not given.pairs:
        return
    short = [code for code in codes if len(code) <= 2_500]
    made = pairs.perturbed(short, given.pairs // 2 if given.mbpp else given.pairs)
    if given.mbpp:
        made += pairs.perturbed(pairs.mbpp(given.mbpp), given.pairs - len(made), seed=1)
    agreement(made)
    if given.pinned_python:
        pinned(made, given.pinned_python)


if __name__ == "__main__":
    main()
