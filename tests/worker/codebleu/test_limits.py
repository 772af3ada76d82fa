"""Text that was made to hurt: a result or a named refusal, and how many steps it may take."""

import time

import pytest

from worker.codebleu import Limits, score_sample

ADD = "def add(first, second):\n    total = first + second\n    return total"
REFUSED = {
    "50,000 parentheses": ("(" * 50_000 + ")" * 50_000, "10,000 levels"),
    "50,000 attributes": ("x=f" + ".a" * 49_000, "10,000 levels"),
    "a lone surrogate": ("x = '\ud800'", "surrogate"),
    "NUL": ("x = '\0'", "NUL"),
    "too long": ("x = 1\n" * 20_000, "100,000 bytes"),
    "too long in bytes": ("é" * 60_000, "100,000 bytes"),
    "a chain of assignments": ("=".join(["a"] * 9_000), "steps"),
}
SCORED = {
    "9,000 parentheses": "x = " + "(" * 9_000 + "1" + ")" * 9_000,
    "a sum of 8,000 terms": "x=" + "+".join(f"a{number}" for number in range(8_000)),
    "40 loops in one another": "\n".join(" " * depth + "while a:" for depth in range(40)) + "\n" + " " * 40 + "a = 1",
    "250 branches in one another": "".join(" " * n + f"if a{n}:\n{' ' * n} b{n} = 1\n" for n in range(250)),
    "2,000 branches": "".join(f"if a:\n b{n} = 1\nelif c:\n b{n} = 2\n" for n in range(2_000)),
    "a tuple of 9,000": "(" + "a," * 9_000 + ") = (" + "b," * 9_000 + ")",
    "2,000 lines that read what 2,000 wrote": "".join(f"if c:\n x = {n}\ny = x\n" for n in range(2_000)),
}


@pytest.mark.parametrize("mode", ["default", "compat"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_over_a_limit_is_refused_by_name(name, mode):
    text, reason = REFUSED[name]
    for pair in ((text, ADD), (ADD, text)):
        found = score_sample(*pair, mode=mode)
        assert (found.parse, found.codebleu) == ("refused", 0)
        assert reason in found.reason


@pytest.mark.parametrize("mode", ["default", "compat"])
@pytest.mark.parametrize("name", SCORED)
def test_what_is_within_the_limits_is_scored(name, mode):
    began = time.process_time()
    found = score_sample(SCORED[name], SCORED[name], mode=mode)
    assert found.parse == "ok"
    assert found.codebleu == pytest.approx(1) or mode == "compat"
    assert found.syntax == 1
    assert time.process_time() - began < 10, "no more than a hundred times what it takes"


ODD = [
    "'" * 19_000,
    ":" * 19_000,
    "'''" + "a" * 19_000,
    "\ufeffx = 1",
    "\r\n\f\v",
    "not " * 4_900,
    "🙂 = 1",
    "[({" * 9_000,
]


@pytest.mark.parametrize("text", ODD)
def test_odd_text_gets_a_result(text):
    for mode in ("default", "compat"):
        assert score_sample(text, ADD, mode=mode).parse in {"ok", "empty", "unparsable"}


def test_each_limit_has_its_name():
    for limits, reason in (
        (Limits(nodes=10), "more than 10 nodes"),
        (Limits(nesting=3), "nested more than 3 levels"),
        (Limits(steps=10), "the dataflow of the reference takes more than 10 steps"),
    ):
        assert reason in score_sample(ADD, ADD, limits=limits).reason
