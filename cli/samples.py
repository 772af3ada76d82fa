"""The demo's data: functions out of the Python standard library on this machine, as instruction -> code samples.

A sample asks for a function by its signature, its class if it has one, and its docstring up to the first doctest; the
answer is the function's source, dedented. The docstring is taken out of the answer: a model would copy it from the
question, and copied text would be counted as code that was written. Left out, because nothing could be learned or
scored: functions inside functions (they lean on variables that the question does not show) and stubs (nothing but
``pass``, ``...``, the return of a constant or ``raise NotImplementedError``).

On CPython 3.11 there are 5,628 samples; question and answer together have a median of 437 characters.
"""

import ast
import copy
import hashlib
import json
import sysconfig
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: Folders of the standard library that hold tests, other people's packages or no library code.
_SKIPPED = frozenset(
    {"test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo", "ensurepip", "site-packages", "dist-packages"}
)
_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Sample:
    """One code task: what is asked, the source that answers it, where it comes from, and the hash of its code."""

    instruction: str
    output: str
    origin: str
    digest: str

    @property
    def characters(self) -> int:
        """Length of question and answer together; some 3.5 characters make a token."""
        return len(self.instruction) + len(self.output)

    def training_line(self) -> str:
        """The sample as a line of a training file."""
        return json.dumps({"instruction": self.instruction, "input": "", "output": self.output}) + "\n"

    def item_line(self) -> str:
        """The sample as a line of an evaluation file."""
        return json.dumps({"item": {"instruction": self.instruction, "completion": self.output}}) + "\n"


def stdlib_samples() -> list[Sample]:
    """Every sample of this Python's standard library: no code twice, ordered by the hash of the code.

    The order depends on nothing but the library's text, and mixes its modules.
    """
    root = Path(sysconfig.get_path("stdlib"))
    found: dict[str, Sample] = {}
    for path in sorted(root.rglob("*.py")):
        folders = path.relative_to(root).parts[:-1]
        if _SKIPPED.isdisjoint(folders) and not any(folder.startswith("config-") for folder in folders):
            for sample in _samples(path, str(path.relative_to(root))):
                found.setdefault(sample.digest, sample)
    return [found[digest] for digest in sorted(found)]


def split(samples: list[Sample], held_out: int) -> tuple[list[Sample], list[Sample]]:
    """The samples to train on and ``held_out`` others. Raises ValueError when that would leave none to train on."""
    if not 0 < held_out < len(samples):
        raise ValueError(f"{held_out} of {len(samples)} samples can't be held out.")
    return samples[held_out:], samples[:held_out]


def _samples(path: Path, origin: str) -> Iterator[Sample]:
    try:
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
    except (UnicodeDecodeError, SyntaxError):
        return  # the library keeps a few files that are wrong on purpose
    lines = source.split("\n")
    for function, owner in _functions(tree):
        docstring = _docstring(function)
        if docstring and not _is_stub(function) and (code := _code(function, lines)) is not None:
            instruction = f"{_question(function, owner)}\n\n{docstring}"
            yield Sample(instruction, code, f"{origin}:{function.lineno}", _digest(function))


def _functions(tree: ast.AST, owner: str | None = None) -> Iterator[tuple[_Function, str | None]]:
    """Functions of a module and methods of its classes, each with its class; nothing inside a function."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, _Function):
            yield node, owner
        elif isinstance(node, ast.ClassDef):
            yield from _functions(node, node.name)
        elif isinstance(node, ast.stmt | ast.ExceptHandler):
            yield from _functions(node, owner)


def _docstring(function: _Function) -> str:
    """The docstring up to its first doctest: sessions are long, and show results rather than say what is wanted."""
    return (ast.get_docstring(function) or "").partition(">>> ")[0].strip()


def _question(function: _Function, owner: str | None) -> str:
    noun = f"method of the class `{owner}`" if owner else "function"
    keyword = "async def" if isinstance(function, ast.AsyncFunctionDef) else "def"
    returns = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    decorators = "".join(f"@{ast.unparse(decorator)}\n" for decorator in function.decorator_list)
    header = f"{decorators}{keyword} {function.name}({ast.unparse(function.args)}){returns}:"
    return f"Write this Python {noun}.\n\n{header}"


def _is_stub(function: _Function) -> bool:
    """True when nothing but a constant, a ``pass`` or a NotImplementedError follows the docstring."""
    body = function.body[1:]
    if len(body) > 1:
        return False
    match body:
        case [] | [ast.Pass()] | [ast.Expr(ast.Constant())] | [ast.Return(None | ast.Constant())]:
            return True
        case [ast.Raise(ast.Name("NotImplementedError") | ast.Call(ast.Name("NotImplementedError")))]:
            return True
    return False


def _code(function: _Function, lines: list[str]) -> str | None:
    """A function's source without its docstring, dedented; None when it can't be cut out line by line."""
    docstring, following = function.body[0], function.body[1]
    first = min([function.lineno, *(decorator.lineno for decorator in function.decorator_list)])
    if docstring.lineno == function.lineno or following.lineno == docstring.end_lineno:
        return None
    kept = lines[first - 1 : docstring.lineno - 1]
    rest = lines[docstring.end_lineno : function.end_lineno]
    while rest and not rest[0].strip():
        rest.pop(0)
    code = textwrap.dedent("\n".join(kept + rest)).strip() + "\n"
    try:
        ast.parse(code)
    except SyntaxError:
        return None  # a text at the left margin keeps the function from being dedented
    return code


def _digest(function: _Function) -> str:
    """Hash of the code as it reads without docstring, comments, blank lines and the function's own name."""
    bare = copy.copy(function)
    bare.name, bare.body = "_", function.body[1:]
    return hashlib.sha256(ast.unparse(bare).encode("utf-8", "surrogatepass")).hexdigest()
