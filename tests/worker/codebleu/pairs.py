"""Real pairs to score: functions of the standard library, or of a JSON Lines file, and answers made from them."""

import json
import keyword
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from cli.samples import stdlib_samples

_WORD = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")
_TOKEN = re.compile(r"\w+|[^\w\s]")


def functions(most: int = 4_400) -> list[str]:
    """Functions of the standard library of up to ``most`` characters, in an order that mixes its modules."""
    return [sample.output for sample in stdlib_samples() if len(sample.output) <= most]


def mbpp(path: Path) -> list[str]:
    """The solutions of a file of MBPP's format: a ``code`` a line."""
    return [json.loads(line)["code"].replace("\r\n", "\n") for line in path.read_text(encoding="utf-8").splitlines()]


def renamed(code: str, rng: random.Random) -> str:
    """Up to four names replaced by new ones."""
    names = sorted({word for word in _WORD.findall(code) if not keyword.iskeyword(word)})
    for number, name in enumerate(rng.sample(names, min(4, len(names)))):
        code = re.sub(rf"\b{name}\b", f"name_{number}", code)
    return code


def without_a_line(code: str, rng: random.Random) -> str:
    """One line deleted."""
    lines = code.split("\n")
    del lines[rng.randrange(len(lines))]
    return "\n".join(lines)


def without_a_token(code: str, rng: random.Random) -> str:
    """One word or sign deleted; most such texts don't parse."""
    found = list(_TOKEN.finditer(code))
    if not found:
        return code
    token = rng.choice(found)
    return code[: token.start()] + code[token.end() :]


def reordered(code: str, rng: random.Random) -> str:
    """Two neighbouring lines swapped."""
    lines = code.split("\n")
    if len(lines) > 2:
        at = rng.randrange(len(lines) - 1)
        lines[at], lines[at + 1] = lines[at + 1], lines[at]
    return "\n".join(lines)


def cut(code: str, rng: random.Random) -> str:
    """The text up to some place, as an answer that reached its limit."""
    return code[: rng.randrange(len(code))]


PERTURBATIONS: Sequence[Callable[[str, random.Random], str]] = (
    renamed, without_a_line, without_a_token, reordered, cut
)  # fmt: skip


def perturbed(codes: Sequence[str], count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Pairs (answer, reference): the answer is the reference, changed in one of the ways, or another function."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        reference = codes[number % len(codes)]
        way = rng.randrange(len(PERTURBATIONS) + 2)
        if way < len(PERTURBATIONS):
            made.append((PERTURBATIONS[way](reference, rng), reference))
        else:
            made.append((reference if way == len(PERTURBATIONS) else rng.choice(codes), reference))
    return made
