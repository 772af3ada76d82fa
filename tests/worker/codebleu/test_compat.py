"""The mode "compat" against the package itself, on this grammar."""

import sys

import codebleu
import pytest

from tests.worker.codebleu import oracle, pairs
from worker.codebleu import package, score, score_sample

EQUAL = (0.25, 0.25, 0.25, 0.25)
PARTS = ("codebleu", "ngram", "weighted_ngram", "syntax", "dataflow")
SAMPLES = [
    "def add(first, second):\n    total = first + second\n    return total",
    "def f(items):\n    for item in items:\n        if item:\n            yield item\n",
    "x = 1",
    "def g(self):\n    '''Say.'''\n    self.name = 'abc'  # a string on the right ends the package's dataflow\n",
]


def figures(found):
    return [getattr(found, part) for part in PARTS]


def told(answers, references, weights=EQUAL):
    found = codebleu.calc_codebleu(references, answers, "python", weights)
    return [found[part] for part in oracle.PARTS]


@pytest.fixture(scope="module")
def functions():
    return pairs.functions(2_000)


@pytest.fixture(scope="module")
def real(functions):
    return pairs.perturbed(functions[::23], 160)


def test_it_equals_the_package_wherever_that_does_not_depend_on_the_hash_seed(real):
    steady, largest, differing = oracle.differing(real, seeds=(0, 1, 2))
    assert differing == []
    assert steady > 0.9 * len(real)
    assert largest < 1e-9


def test_it_equals_the_package_over_a_corpus_and_with_other_weights():
    answers, references = SAMPLES[1:] + SAMPLES[:1], SAMPLES
    for weights in (EQUAL, (0.1, 0.1, 0.4, 0.4)):
        found = score(answers, references, weights=weights, mode="compat")
        assert figures(found) == pytest.approx(told(answers, [[text] for text in references], weights), abs=1e-9)


@pytest.mark.parametrize("answer", SAMPLES)
def test_it_equals_the_package_with_several_references(answer):
    found = score([answer], [SAMPLES], mode="compat")
    assert figures(found) == pytest.approx(told([answer], [SAMPLES]), abs=1e-9)
    assert figures(score_sample(answer, SAMPLES, mode="compat")) == pytest.approx(figures(found), abs=1e-12)


@pytest.mark.parametrize(
    "answer",
    [
        "", "hello", "x = 'é' + name  # ü\ny = x", "def f():\n\t'doc'\n\treturn 1", "x = 1 + \\\n    y\n",
        "f(\n'at the margin', 1)", "identifier = 1\nx = identifier", "def f(a=b + c, d=()):\n    return d",
        "for a in b:\n    c = a\nelse:\n    c = 1\nd = c", "x = a = b + c\n", "[f(x) for x in xs if x]",
        "x: int\ny: int = 2", "re.sub('^\\.', r'^\\.')", "pass\nf()",
        "def f(a):\n        b = a\n    c = a + \\\n   b", "def f(:\n  x = [y for y in z if]",
    ],
)  # fmt: skip
def test_its_faults_are_the_packages(answer):
    reference = "def f(a):\n    b = 'é' + a\n    return b\n"
    for pair in ((answer, reference), (reference, answer), (answer, answer)):
        assert figures(score_sample(*pair, mode="compat")) == pytest.approx(told([pair[0]], [[pair[1]]]), abs=1e-9)


def test_a_dataflow_of_nothing_counts_as_one_there():
    found = score_sample("", SAMPLES[0], mode="compat")
    assert (found.codebleu, found.dataflow, found.parse) == (pytest.approx(0.25), 0, "empty")


def test_it_is_for_python_only():
    with pytest.raises(ValueError, match="Python only"):
        score_sample("x = 1", "x = 1", "go", mode="compat")


def test_a_refused_sample_adds_nothing():
    found = score([SAMPLES[0], "\ud800"], [SAMPLES[0]] * 2, mode="compat")
    assert found.counts == {"ok": 1, "empty": 0, "unparsable": 0, "refused": 1}
    assert found.codebleu == pytest.approx(1)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="tokenize reads f-strings in another way from 3.12 on")
def test_cutting_comments_quickly_gives_what_tokenize_gives(functions):
    for code in functions[::5]:
        assert package.code_of(code) == package.code_by_tokenize(code)
