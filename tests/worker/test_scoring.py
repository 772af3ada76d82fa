import os
import signal
import subprocess
import sys
import time
from dataclasses import astuple
from pathlib import Path

import codebleu
import pytest

from tests.waiting import wait_for
from worker.codebleu import METRIC, score_sample
from worker.scoring import PairScore, Scorer, corpus, headline, refusal, score_pairs

EQUAL = (0.25, 0.25, 0.25, 0.25)
ADD = "def add(first, second):\n    total = first + second\n    return total"
LOOP = "def f(items):\n    result = []\n    for item in items:\n        result.append(item * 2)\n    return result"
ZERO = {"ngram": 0.0, "weighted_ngram": 0.0, "syntax": 0.0, "dataflow": 0.0}


@pytest.fixture(scope="module")
def scorer():
    with Scorer() as made:
        yield made


@pytest.fixture(params=["hone", "package"])
def by(request):
    return request.param


def score(scorer: Scorer, candidate: str, reference: str = ADD, weights=EQUAL, by="hone") -> PairScore:
    return scorer.score(candidate, reference, lang="python", weights=weights, scorer=by)


def test_the_metric_names_the_scorer_and_its_version(scorer):
    assert scorer.metric() == METRIC
    assert scorer.metric("package") == "codebleu 0.7.0 (package)"


def test_our_own_scorer_scores_unless_another_is_asked_for(scorer):
    candidate = LOOP.replace("item", "entry")
    found, own = score(scorer, candidate, LOOP), score_sample(candidate, LOOP)
    assert (found.codebleu, found.parts, found.raw) == (
        own.codebleu,
        dict(zip(found.parts, astuple(own)[1:5], strict=True)),
        None,
    )


def test_other_languages_are_scored(scorer):
    code = "func add(a int, b int) int {\n\ttotal := a + b\n\treturn total\n}"
    found = scorer.score(code.replace("total", "sum"), code, lang="go", weights=EQUAL)
    assert (found.syntax, found.dataflow) == (1, 1)
    assert scorer.package_corpus([(code, code)], lang="go", weights=EQUAL) is None


@pytest.mark.parametrize("code", [ADD, LOOP])
def test_code_that_is_its_reference_scores_one(scorer, code, by):
    found = score(scorer, code, code, by=by)
    assert found.codebleu == pytest.approx(1)
    assert found.parse == "ok"
    assert found.passes(1.0)


def test_by_the_package_parts_are_its_own_where_it_is_right(scorer):
    candidate = ADD.replace("total", "result")
    found = score(scorer, candidate, by="package")
    told = codebleu.calc_codebleu([[ADD]], [candidate], lang="python")
    assert found.codebleu == pytest.approx(told["codebleu"], abs=0.02)  # this process has another hash seed
    assert found.ngram == told["ngram_match_score"]
    assert found.syntax == told["syntax_match_score"]
    assert found.dataflow == 1, "names don't count"
    assert found.raw["codebleu"] == found.codebleu


@pytest.mark.parametrize("candidate", ["", " \n\t\n", "# only a comment\n# and another"])
def test_an_empty_answer_is_named_and_scores_zero(scorer, candidate, by):
    found = score(scorer, candidate, by=by)
    assert (found.codebleu, found.parts, found.parse) == (0, ZERO, "empty")
    assert not found.passes(0.0)
    if by == "package":
        assert found.raw["codebleu"] == 0.25, "what the package gives for nothing stays to be seen"


@pytest.mark.parametrize(
    "candidate", ["Sure, here is the code that you asked for:", "def add(first, second:\n    return", "if x\n"]
)
def test_an_answer_that_does_not_parse_is_named_and_scores_zero(scorer, candidate, by):
    found = score(scorer, candidate, by=by)
    assert (found.codebleu, found.parts, found.parse) == (0, ZERO, "unparsable")


@pytest.mark.parametrize("weights", [EQUAL, (0.1, 0.1, 0.4, 0.4), (0, 0, 0, 1)])
def test_words_that_happen_to_parse_get_no_credit_for_dataflow(scorer, weights, by):
    found = score(scorer, "hello", weights=weights, by=by)
    assert (found.parse, found.dataflow, found.codebleu) == ("ok", 0, 0)


def test_a_reference_without_dataflow_leaves_the_part_out(scorer, by):
    found = score(scorer, "import os\nimport sys", "import os\nimport sys", by=by)
    assert found.dataflow is None
    assert found.codebleu == pytest.approx((found.ngram + found.weighted_ngram + found.syntax) / 3)


def test_an_empty_answer_to_a_reference_without_dataflow_leaves_the_part_out_too(scorer, by):
    assert score(scorer, "", "import os", by=by).parts == ZERO | {"dataflow": None}


def test_weights_that_leave_nothing_to_weigh_are_a_named_result(scorer, by):
    found = score(scorer, "import os", "import os", weights=(0, 0, 0, 1), by=by)
    assert (found.parse, found.codebleu) == ("refused", 0)
    assert "no dataflow" in found.reason


def test_indentation_shared_by_all_lines_does_not_count(scorer):
    body = "    total = first + second\n    return total\n"
    assert score(scorer, body, body).codebleu == pytest.approx(1)


def test_a_reference_that_does_not_parse_is_told_and_the_answer_scored(scorer, by):
    found = score(scorer, ADD, ADD + "\n)", by=by)
    assert found.parse == "ok"
    assert found.codebleu > 0.5
    assert "reference does not parse" in found.reason


@pytest.mark.parametrize("reference", ["", "   ", "# nothing"])
def test_an_empty_reference_is_refused(scorer, reference, by):
    found = score(scorer, reference, reference, by=by)
    assert (found.parse, found.reason, found.codebleu) == ("refused", "the reference is empty", 0)


HOSTILE = {
    "lone surrogate": ("x = '\ud800'", "surrogate"),
    "NUL": ("x = '\0'", "NUL"),
    "50,000 parentheses": ("(" * 50_000 + ")" * 50_000, "20,000 bytes"),
    "9,000 parentheses": ("(" * 9_000 + ")" * 9_000, "brackets"),
    "a sum of 8,000 terms": ("x=" + "+".join(["a"] * 8_000), "200 levels"),
    "19,000 minus signs": ("x=" + "-" * 19_000 + "1", "200 levels"),
    "2,500 lambdas": ("x=" + "lambda:" * 2_500 + "1", "200 levels"),
    "9,000 attributes": ("x=f" + ".a" * 9_000, "200 levels"),
    "too long": ("x = 1\n" * 4_000, "20,000 bytes"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_not_given_to_the_package(scorer, name):
    text, reason = HOSTILE[name]
    began = time.monotonic()
    for found in (score(scorer, text, by="package"), score(scorer, ADD, text, by="package")):
        assert (found.parse, found.codebleu, found.raw) == ("refused", 0, None)
        assert reason in found.reason
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_gets_a_score_or_a_named_reason_in_the_same_process(scorer, name):
    text, _ = HOSTILE[name]
    before = score(scorer, ADD)
    child = scorer._child.pid
    for found in (score(scorer, text), score(scorer, ADD, text)):
        assert found.parse == "ok" or (found.codebleu == 0 and (found.parse == "unparsable" or found.reason))
    assert scorer._child.pid == child
    assert score(scorer, ADD) == before


@pytest.mark.parametrize(
    "text", ["'" * 19_000, ":" * 19_000, "'''" + "a" * 19_000, "\ufeffx = 1", "\r\n\f\v", "not " * 4_900, "🙂 = 1"]
)
def test_odd_text_gets_a_result(scorer, text, by):
    assert score(scorer, text, by=by).parse in {"ok", "empty", "unparsable", "refused"}


def test_a_pair_that_takes_too_long_costs_only_itself():
    loops = "\n".join(" " * depth + "while a:" for depth in range(40)) + "\n" + " " * 40 + "a = 1"  # 2^40 steps
    with Scorer(cpu_seconds=0.5) as scorer:
        before, slow, after = (score(scorer, text, by="package") for text in (ADD, loops, ADD))
    assert slow.parse == "refused"
    assert "seconds of processor time" in slow.reason
    assert before == after
    assert after.codebleu == pytest.approx(1)
    with Scorer(cpu_seconds=0.5) as scorer:
        assert score(scorer, loops, loops).codebleu == pytest.approx(1), "our own scorer needs no 2^40 steps"


def test_a_scorer_that_is_killed_comes_back():
    with Scorer() as scorer:
        score(scorer, ADD)
        os.kill(scorer._child.pid, signal.SIGKILL)
        assert score(scorer, ADD).codebleu == pytest.approx(1)


def test_pairs_keep_their_order(by):
    found = score_pairs([("", ADD), (ADD, ADD), ("def", ADD)], lang="python", weights=EQUAL, scorer=by)
    assert [entry.parse for entry in found] == ["empty", "ok", "unparsable"]
    assert score_pairs([], lang="python", weights=EQUAL) == []


_PRINT_SCORES = f"""
from worker.scoring import score_pairs
pairs = [({LOOP!r}, {ADD!r}), ({ADD!r}, {LOOP!r}), ({LOOP.replace("item", "entry")!r}, {LOOP!r})]
for scorer in ('hone', 'package'):
    print(score_pairs(pairs, lang="python", weights={EQUAL}, scorer=scorer))
"""


def test_scores_do_not_depend_on_the_hash_seed():
    def run(seed: str) -> str:
        env = os.environ | {"PYTHONHASHSEED": seed}
        return subprocess.run(
            [sys.executable, "-c", _PRINT_SCORES], env=env, capture_output=True, text=True, check=True
        ).stdout

    assert len({run(seed) for seed in ("0", "1", "2", "77", "random")}) == 1


def test_the_scorer_dies_with_its_parent():
    script = (
        "import os, signal\nfrom worker.scoring import Scorer\nscorer = Scorer()\nscorer.__enter__()\n"
        "print(scorer._child.pid, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    pid = int(ended.stdout)
    wait_for(lambda: not _is_alive(pid), seconds=5)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in {"Z", "X"}
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_the_scorer_sees_no_secrets(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with Scorer() as scorer:
        assert b"hf_secret" not in Path(f"/proc/{scorer._child.pid}/environ").read_bytes()


def test_a_corpus_has_means_counts_and_the_packages_score(scorer, by):
    pairs = [(ADD, ADD), ("", ADD), ("def", ADD), ("x = '\0'", ADD), ("import os", "import os")]
    scores = [score(scorer, *pair, by=by) for pair in pairs]
    own = scorer.package_corpus([pairs[0], pairs[4]], lang="python", weights=EQUAL, scorer=by)
    found = corpus(pairs, scores, pass_threshold=0.9, truncated=1, package_corpus=own)
    assert found["codebleu"] == pytest.approx((1 + scores[4].codebleu) / 5)
    assert found["dataflow"] == pytest.approx(1 / 4), "of the four whose reference has a dataflow"
    counts = ("passed", "failed", "empty", "unparsable", "refused", "truncated", "exact_match")
    passed = 2 if by == "hone" else 1  # the package gives two equal words 0.66
    assert [found[name] for name in counts] == [passed, 5 - passed, 1, 1, 1, 1, 2]
    told = codebleu.calc_codebleu([[ADD], ["import os"]], [ADD, "import os"], lang="python")
    assert found["package_corpus"]["codebleu"] == pytest.approx(told["codebleu"])
    assert set(found["package_corpus"]) == {"codebleu", "ngram", "weighted_ngram", "syntax", "dataflow"}


def test_an_empty_corpus_has_no_means(scorer, by):
    assert scorer.package_corpus([], lang="python", weights=EQUAL, scorer=by) is None
    found = corpus([], [], pass_threshold=0.5, truncated=0, package_corpus=None)
    assert found["codebleu"] is None
    assert found["passed"] == found["failed"] == 0


def test_the_headline_scales_weights_up_to_the_parts_there_are():
    parts = {"ngram": 0.4, "weighted_ngram": 0.8, "syntax": 0.6, "dataflow": None}
    assert headline(parts, (0.1, 0.1, 0.4, 0.4)) == pytest.approx((0.04 + 0.08 + 0.24) / 0.6)
    assert headline(parts, (0, 0, 0, 1)) is None


@pytest.mark.parametrize("text", ["", "x" * 20_000, "(" * 100, "é" * 10_000])
def test_text_within_the_limits_is_not_refused(text):
    assert refusal(text, "the answer") is None
