"""The demo's samples: enough of them, always the same, and fit for training and evaluation."""

import ast
import hashlib
import os
import subprocess
import sys

import pytest

from cli.samples import Sample, split, stdlib_samples
from core.dataset import check_items, check_training

MAX_LINE_BYTES = 2**20
FINGERPRINT = (
    "import hashlib; from cli.samples import stdlib_samples;"
    "print(hashlib.sha256(''.join(s.training_line() for s in stdlib_samples()).encode()).hexdigest())"
)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return stdlib_samples()


def test_there_are_at_least_5000(samples):
    assert len(samples) >= 5000


def test_the_same_samples_in_the_same_order_whatever_the_hash_seed(samples):
    here = hashlib.sha256("".join(sample.training_line() for sample in samples).encode()).hexdigest()
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    there = subprocess.check_output([sys.executable, "-c", FINGERPRINT], env=environment, text=True)
    assert there.strip() == here


def test_every_answer_is_one_function_without_its_docstring(samples):
    for sample in samples:
        (function,) = ast.parse(sample.output).body
        assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef), sample.origin
        assert function.body


def test_no_code_appears_twice_and_held_out_code_is_not_trained_on(samples):
    codes = [sample.output for sample in samples]
    assert len(set(codes)) == len(codes)
    train, held_out = split(samples, 300)
    assert len(held_out) == 300
    assert len(train) == len(samples) - 300
    assert {sample.digest for sample in train}.isdisjoint(sample.digest for sample in held_out)


def test_a_name_or_a_comment_does_not_make_code_new(tmp_path, monkeypatch):
    (tmp_path / "a.py").write_text('def f(x):\n    """Add one."""\n    return x + 1\n')
    (tmp_path / "b.py").write_text('def g(x):\n    """Plus one."""\n    # one more\n    return x + 1\n')
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    assert [sample.origin for sample in stdlib_samples()] == ["a.py:1"]


def test_a_question_holds_signature_class_and_docstring(tmp_path, monkeypatch):
    (tmp_path / "a.py").write_text(
        'class Box:\n    @classmethod\n    async def take(cls, n: int = 1) -> list[int]:\n        """Take n.\n\n'
        '        >>> Box.take()\n        """\n\n        return await cls._take(n)\n\n'
        '    def stub(self):\n        """Nothing here."""\n        raise NotImplementedError\n'
    )
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    (sample,) = stdlib_samples()
    assert sample.instruction == (
        "Write this Python method of the class `Box`.\n\n"
        "@classmethod\nasync def take(cls, n: int=1) -> list[int]:\n\nTake n."
    )
    assert sample.output == (
        "@classmethod\nasync def take(cls, n: int = 1) -> list[int]:\n    return await cls._take(n)\n"
    )


def test_samples_pass_the_checks_of_an_upload(samples):
    training = check_training((sample.training_line().encode() for sample in samples), MAX_LINE_BYTES)
    assert (training.format, training.samples, training.problem_count) == ("instruction", len(samples), 0)
    items = check_items((sample.item_line().encode() for sample in samples), MAX_LINE_BYTES)
    assert (items.samples, items.problem_count) == (len(samples), 0)


@pytest.mark.parametrize("held_out", [0, -1, 3, 4])
def test_a_split_that_leaves_nothing_is_refused(samples, held_out):
    with pytest.raises(ValueError, match="held out"):
        split(samples[:3], held_out)
