import dataclasses
import os
import subprocess
import sys

import pytest

from worker.codebleu import METRIC, Limits, UnsupportedLanguageError, score, score_sample

ADD = "def add(first, second):\n    total = first + second\n    return total"
LOOP = "def f(items):\n    result = []\n    for item in items:\n        result.append(item * 2)\n    return result"
PARTS = ("ngram", "weighted_ngram", "syntax", "dataflow")


def parts(found):
    return tuple(getattr(found, part) for part in PARTS)


@pytest.mark.parametrize(
    "code", [ADD, LOOP, "x", "print('hi')", "import os", "pass", "return 1", "x = 'é'", "# a\nx = 1"]
)
def test_code_that_is_its_reference_scores_one(code):
    found = score_sample(code, code)
    assert found.codebleu == pytest.approx(1)
    assert found.parse == "ok"


def test_a_name_that_is_white_space_to_python_is_a_word():
    assert score_sample("\x85", "\x85", "javascript").codebleu == pytest.approx(1)  # found by fuzzing


@pytest.mark.parametrize("answer", ["", "  \n", "# only a comment"])
def test_an_empty_answer_scores_zero_by_name(answer):
    found = score_sample(answer, ADD)
    assert (found.codebleu, parts(found), found.parse) == (0, (0, 0, 0, 0), "empty")


def test_prose_gets_no_credit_for_dataflow():
    for answer in ("hello", "Sure, here is the function that you asked for: it adds two numbers."):
        found = score_sample(answer, ADD)
        assert found.dataflow == 0
        assert found.codebleu < 0.05
    assert score_sample("Sure, here you are:", ADD).parse == "unparsable"


def test_renamed_variables_lose_the_ngram_parts_only():
    answer = LOOP.replace("result", "zeta").replace("items", "alpha").replace("item", "beta")
    found = score_sample(answer, LOOP)
    assert (found.syntax, found.dataflow) == (1, 1)
    assert found.ngram < 1
    assert found.weighted_ngram < 1


def test_comments_docstrings_and_blank_lines_change_neither_syntax_nor_dataflow():
    answer = ADD.replace("\n", '\n    """Add."""\n\n    # the sum\n', 1)
    assert parts(score_sample(answer, ADD))[2:] == (1, 1)
    assert parts(score_sample(ADD, answer))[2:] == (1, 1)


def test_a_reference_without_dataflow_leaves_the_part_out():
    found = score_sample("import os", "import os\nimport sys", weights=(0.1, 0.1, 0.4, 0.4))
    assert found.dataflow is None
    expected = (0.1 * found.ngram + 0.1 * found.weighted_ngram + 0.4 * found.syntax) / 0.6
    assert found.codebleu == pytest.approx(expected)
    assert score_sample("x = ", "import os").dataflow is None
    only = score_sample("import os", "import os", weights=(0, 0, 0, 1))
    assert (only.parse, only.codebleu) == ("refused", 0)


def test_a_reference_that_is_empty_or_does_not_parse_is_told():
    assert score_sample(ADD, "# nothing").reason == "the reference is empty"
    found = score_sample(ADD, ADD + "\n)")
    assert (found.parse, found.reason) == ("ok", "the reference does not parse")
    assert found.codebleu > 0.5


def test_subtrees_count_as_often_as_they_are_wanted():
    assert score_sample("f(a)\nf(b)\nf(c)", "f(a)").syntax < 1, "a module of three calls is not one of one"
    found = score_sample("f(a)", "f(a)\nf(b)\nf(c)\nf(d)")
    assert found.syntax == pytest.approx(3 / 13), "one call of four: the statement, the call and its arguments"


def test_weights_are_of_the_parts():
    found = score_sample(ADD.replace("+", "-"), ADD, weights=(1, 0, 0, 0))
    assert found.codebleu == found.ngram < 1
    assert score_sample(ADD.replace("+", "-"), ADD, weights=(2, 0, 0, 2)).codebleu == pytest.approx(
        (found.ngram + 1) / 2
    )


def test_the_best_reference_counts():
    alone = score_sample(LOOP, LOOP)
    assert score_sample(LOOP, [ADD, LOOP, "x = )"]) == alone
    assert score_sample("", [ADD, LOOP]).parse == "empty"


def test_a_corpus_has_the_means_and_the_counts():
    found = score([ADD, "", "def", "import os", "x='\0'"], [ADD, ADD, ADD, "import os", ADD])
    assert found.samples == len(found.scores) == 5
    assert found.counts == {"ok": 2, "empty": 1, "unparsable": 1, "refused": 1}
    assert found.codebleu == pytest.approx(2 / 5)
    assert found.dataflow == pytest.approx(1 / 4), "of the four whose reference has one"
    assert (found.metric, found.lang, found.mode, found.weights) == (METRIC, "python", "default", (0.25,) * 4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.codebleu = 1


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (([], []), ValueError, "no samples"),
        ((["x"], []), ValueError, "1 predictions"),
        ((["x"], [[]]), ValueError, "needs a reference"),
        ((["x"], ["x"], "cobol"), UnsupportedLanguageError, "'cobol'.*python"),
        ((["x"], ["x"], "python", (1, 2, 3)), ValueError, "four numbers"),
        ((["x"], ["x"], "python", (0, 0, 0, 0)), ValueError, "four numbers"),
        ((["x"], ["x"], "python", (float("nan"), 0, 0, 1)), ValueError, "four numbers"),
    ],
)
def test_what_can_not_be_scored_is_refused(given, error, message):
    with pytest.raises(error, match=message):
        score(*given)
    with pytest.raises(ValueError, match="processes"):
        score(["x"], ["x"], processes=0)


_PRINT = f"""
import sys
from worker.codebleu import score
answers, references = {[LOOP, ADD, "", "x = (", LOOP.replace("item", "entry")]!r}, {[ADD, LOOP, ADD, LOOP, LOOP]!r}
for mode in ("default", "compat"):
    print(score(answers, references, mode=mode, processes=int(sys.argv[1]) if len(sys.argv) > 1 else 1))
"""


def run(seed: str, *arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", _PRINT, *arguments],
        env=os.environ | {"PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_scores_depend_neither_on_the_hash_seed_nor_on_the_processes():
    found = {run(seed) for seed in ("0", "1", "2", "77", "random")} | {run("random", "2"), run("random", "4")}
    assert len(found) == 1
    assert "codebleu=" in found.pop()


def test_it_imports_nothing_of_ours_and_no_torch():
    script = (
        "import sys, worker.codebleu\nloaded = [name for name in sys.modules if name.split('.')[0] in "
        "('core', 'models', 'api', 'cli', 'torch', 'codebleu', 'pydantic') or "
        "(name.startswith('worker.') and not name.startswith('worker.codebleu'))]\nprint(loaded)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_limits_can_be_narrowed():
    narrow = Limits(bytes=20)
    assert score_sample("x = 1", "x = 1", limits=narrow).parse == "ok"
    assert score_sample("x = 1" * 5, "x = 1", limits=narrow).reason == "the answer is longer than 20 bytes"
