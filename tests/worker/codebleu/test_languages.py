"""Each language's table: what comes from what, and what a score keeps when names change."""

from collections import Counter

import pytest

from worker.codebleu import LANGUAGES, UnsupportedLanguageError, score_sample
from worker.codebleu.analysis import _texts
from worker.codebleu.dataflow import Flow
from worker.codebleu.language import Table, load, loaded
from worker.codebleu.limits import Limits
from worker.codebleu.ngram import compare
from worker.codebleu.tree import numbering, read

LIMITS = Limits()
# ruff: noqa: E501 - a sample a line
#: A function that sums what is in `items` from `start` on, in each language, with a branch and a loop over a counter.
SUMS = {
    "c": "int sum(int items[], int n, int start) {\n  int total = start; // so far\n  for (int i = 0; i < n; i++) {\n    if (items[i] > 0) { total = total + items[i]; } else { total -= 1; }\n  }\n  return total;\n}",
    "c_sharp": "int Sum(List<int> items, int start) {\n  int total = start; // so far\n  foreach (var item in items) {\n    if (item > 0) { total = total + item; } else { total--; }\n  }\n  return total;\n}",
    "cpp": "int sum(const std::vector<int>& items, int start) {\n  int total = start; // so far\n  for (auto item : items) {\n    if (item > 0) { total = total + item; } else { total--; }\n  }\n  return total;\n}",
    "go": "func sum(items []int, start int) int {\n\ttotal := start // so far\n\tfor _, item := range items {\n\t\tif item > 0 {\n\t\t\ttotal = total + item\n\t\t} else {\n\t\t\ttotal--\n\t\t}\n\t}\n\treturn total\n}",
    "java": "int sum(int[] items, int start) {\n  int total = start; // so far\n  for (int item : items) {\n    if (item > 0) { total = total + item; } else { total--; }\n  }\n  return total;\n}",
    "javascript": "function sum(items, start) {\n  let total = start; // so far\n  for (const item of items) {\n    if (item > 0) { total = total + item; } else { total--; }\n  }\n  return total;\n}",
    "php": "function sum($items, $start) {\n  $total = $start; // so far\n  foreach ($items as $item) {\n    if ($item > 0) { $total = $total + $item; } else { $total--; }\n  }\n  return $total;\n}",
    "python": "def sum_of(items, start):\n    total = start  # so far\n    for item in items:\n        if item > 0:\n            total = total + item\n        else:\n            total -= 1\n    return total",
    "ruby": "def sum(items, start)\n  total = start # so far\n  for item in items do\n    if item > 0 then total = total + item else total -= 1 end\n  end\n  total\nend",
    "rust": "fn sum(items: &[i32], start: i32) -> i32 {\n  let mut total = start; // so far\n  for item in items {\n    if item > 0 { total = total + item; } else { total -= 1; }\n  }\n  total\n}",
    "typescript": "function sum(items: number[], start: number): number {\n  let total: number = start; // so far\n  for (const item of items) {\n    if (item > 0) { total = total + item; } else { total--; }\n  }\n  return total;\n}",
}  # fmt: skip


def edges(code: str, lang: str) -> Counter[str]:
    """The edges of a text as `name <- sources` (taken over) and `name <= sources` (worked out), `*` for its own name."""
    language = load(lang)
    text = language.table.opening + code
    source = text.encode()
    tree = language.parser.parse(source)
    assert not tree.root_node.has_error, tree.root_node
    reading = read(tree, source, language, numbering(), LIMITS, "it", code_only=True)
    found = Flow(reading, _texts(text, source, reading), language, LIMITS, "it", package=False).edges()
    return Counter(
        f"{name} {'<-' if relation == 'comesFrom' else '<='} {'*' if sources is None else ','.join(sources)}".rstrip()
        for name, relation, sources in found
    )


def test_every_language_has_its_sample():
    assert set(SUMS) == set(LANGUAGES)


@pytest.mark.parametrize("lang", LANGUAGES)
def test_values_are_followed(lang):
    found = edges(SUMS[lang], lang)
    sign = "$" if lang == "php" else ""
    total, start, item = f"{sign}total", f"{sign}start", f"{sign}item"
    relation = "<=" if lang in {"php", "python", "ruby"} else "<-"  # these have no declarations
    assert found[f"{total} {relation} {start}"] == 1
    assert found[f"{start} <- *"] == 1, "the parameter is read"
    assert found[f"{total} <- *"] >= 2, "and the total, in the loop and at the end"
    if lang != "c":
        assert found[f"{total} <= {total},{item}"] == 1
        assert found[f"{item} <= {sign}items"] + found[f"{item} <- {sign}items"] == 1
    one = f"{total} <= {total}" if lang not in {"c", "python", "ruby", "rust"} else f"{total} <= 1"
    assert found[one] == 1


@pytest.mark.parametrize("lang", LANGUAGES)
def test_code_that_is_its_reference_scores_one_and_renaming_costs_the_ngrams_only(lang):
    code = SUMS[lang]
    same = score_sample(code, code, lang)
    assert (same.codebleu, same.parse) == (pytest.approx(1), "ok")
    found = score_sample(code.replace("total", "zeta").replace("start", "alpha"), code, lang)
    assert (found.syntax, found.dataflow) == (1, 1)
    assert found.ngram < 1


@pytest.mark.parametrize("lang", LANGUAGES)
def test_another_source_costs_dataflow_and_comments_cost_none(lang):
    code = SUMS[lang]
    other = "$items" if lang == "php" else "items"
    start = "$start" if lang == "php" else "start"
    wrong = code.replace(f"= {start}", f"= {other}", 1)
    assert wrong != code
    assert score_sample(wrong, code, lang).dataflow < 1
    bare = code.replace(" // so far", "").replace("  # so far", "").replace(" # so far", "")
    assert bare != code
    found = score_sample(bare, code, lang)
    assert (found.syntax, found.dataflow) == (1, 1)


@pytest.mark.parametrize("lang", LANGUAGES)
def test_keywords_weigh_five_times_as_much(lang):
    keywords = load(lang).table.keywords
    assert {"if", "else", "for", "while", "return"} - {"while" if lang == "go" else ""} <= keywords
    plain, weighted = compare(["return", "it", "now"], ["return", "that", "now"], keywords)
    assert (plain.matched[0], plain.total[0]) == (2, 3)
    assert (weighted.matched[0], weighted.total[0]) == (pytest.approx(1.2), pytest.approx(1.4))


@pytest.mark.parametrize("lang", LANGUAGES)
def test_broken_and_empty_answers_are_named(lang):
    comment = {"python": "# nothing", "ruby": "# nothing"}.get(lang, "// nothing")
    assert score_sample(comment, SUMS[lang], lang).parse == "empty"
    assert score_sample(SUMS[lang][: len(SUMS[lang]) // 2], SUMS[lang], lang).parse == "unparsable"


@pytest.mark.parametrize(
    ("lang", "code", "expected"),
    [
        ("python", "a, b = b, a", ["a <= b", "b <= a"]),
        ("python", "def f(a=b):\n    return a", ["a <- b", "a <- *"]),
        ("python", "for a in b:\n    pass\nelse:\n    c = a", ["a <= b", "c <= a"]),
        ("python", "if a:\n    b = 1\nelif c:\n    b = 2\nd = b", ["d <= b", "b <- *"]),
        ("python", "self.x = y.z", ["self <= y,z", "x <= y,z"]),
        ("python", "z = [f(x) for x in xs]", ["z <= f,x,xs", "x <= xs"]),
        ("go", "func f() {\n\ta, b := 1, c\n\ta, b = b, a\n}", ["a <- 1", "b <- c", "a <= b", "b <= a"]),
        ("go", "func f() {\n\tvar a, b = c, d\n}", ["a <- c", "b <- d"]),
        ("javascript", "let [a, b] = [c, d];", ["a <- c", "b <- d"]),
        ("javascript", "switch (a) { case 1: b = c; break; default: b = d }\ne = b;", ["b <= c", "b <= d", "e <= b"]),
        ("ruby", "a, b = b, a", ["a <= b", "b <= a"]),
        ("rust", "fn f() { let (a, b) = (c, d); }", ["a <- c", "b <- d"]),
        ("c", "int f() { int a = b; while (a) { a = a - c; } return a; }", ["a <- b", "a <= a,c"]),
        ("c_sharp", "class A { int f() { int a = b; a++; return a; } }", ["a <- b", "a <= a"]),
        ("java", "class A { int f() { int a = b; a++; return a; } }", ["a <- b", "a <= a"]),
        ("php", "foreach ($a as $b => $c) { $d = $b; }", ["$b <= $a", "$c <= $a", "$d <= $b"]),
        ("typescript", "class A { x: number = y; f(a: T = b) { return a; } }", ["x <- y", "a <- b", "a <- *"]),
    ],
)  # fmt: skip
def test_rules(lang, code, expected):
    found = edges(code, lang)
    assert [edge for edge in expected if edge not in found] == [], found


def test_a_grammar_that_is_not_installed_or_another_one_is_refused_by_name():
    for grammar, kind, message in (
        ("tree_sitter_klingon", "x", "tree-sitter-klingon; install it"),
        ("tree_sitter_python", "warp", "tree_sitter_python as installed has no warp"),
    ):
        table = Table(name="odd", grammar=grammar, keywords=frozenset(), rules={}, names=frozenset({kind}))
        with pytest.raises(UnsupportedLanguageError, match=message):
            loaded(table)
