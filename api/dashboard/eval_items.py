"""What an evaluation asks, out of a file: the items of an evaluation file, or a dataset's samples made into items."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

from api.deps import Parts
from api.run_request import FileSource, InlineItem, InlineSource
from core.dataset import Sample, read_item_lines, read_samples
from core.errors import InvalidRequestError
from core.prompts import one_text
from core.specs import PromptTemplate
from models.tables import File

Item = dict[str, Any]

#: Items that are made for one run, and the characters in them: they are held in memory once.
MOST = 10_000
_MOST_CHARACTERS = 64 * 2**20
#: Names by which an item's question and its expected answer are found, where the form names none.
_QUESTIONS = ("prompt", "instruction", "question")
_ANSWERS = ("completion", "output", "answer", "reference")


@dataclass(frozen=True)
class Questions:
    """A file as a run's source: its items, the prompt's turns (role, template), and the expected answer's template."""

    source: FileSource | InlineSource
    turns: list[tuple[str, str]]
    reference: str


@dataclass(frozen=True)
class Wanted:
    """What the form says of the questions: how many of the first, and templates; an empty one is to be found.

    ``reference`` is None where an eval that is there has it already.
    """

    at_most: int | None = None
    prompt: str = ""
    reference: str | None = ""


def questions_of(parts: Parts, file: File, wanted: Wanted, template: PromptTemplate) -> Questions:
    """The questions in a file. Raises InvalidRequestError, its param a field of the form.

    ``template``: that with which the model was trained; an instruction's input is joined as it was there.
    """
    chunks = parts.storage.get(file.storage_key)
    if file.purpose == "fine-tune":
        samples = read_samples(chunks, parts.settings.max_line_bytes)
        found = _of_samples(samples, file, wanted.at_most, template)
        turns = [("user", wanted.prompt)] if wanted.prompt else found.turns
        return replace(found, turns=turns, reference=wanted.reference or found.reference)
    items = (record["item"] for _, record in read_item_lines(chunks, parts.settings.max_line_bytes))
    return _of_items(items, file, wanted)


# --- An evaluation file ----------------------------------------------------------------------------------------------


def _of_items(items: Iterator[Item], file: File, wanted: Wanted) -> Questions:
    first = next(items, {})
    source: FileSource | InlineSource = FileSource(type="file_id", id=file.id)
    if wanted.at_most is not None and wanted.at_most < ((file.report or {}).get("samples") or 0):
        source = _inline(chain([first], items), file, wanted.at_most)
    question = wanted.prompt or _find(first, file, "prompt", _QUESTIONS)
    reference = _find(first, file, "reference", _ANSWERS) if wanted.reference == "" else wanted.reference
    return Questions(source, [("user", question)], reference or "")


def _find(item: Mapping[str, Any], file: File, field: str, names: tuple[str, ...]) -> str:
    name = next((name for name in names if isinstance(item.get(name), str)), None)
    if name is None:
        there = ", ".join(list(item)[:12]) or "nothing"
        raise InvalidRequestError(
            f"The items of {file.filename} have no text of the name {', '.join(names[:-1])} or {names[-1]}; there is "
            f"{there:.200}. Write here which field to take, such as {{{{item.name}}}}.",
            param=field,
            code="missing_field",
        )
    return f"{{{{item.{name}}}}}"


# --- A dataset -------------------------------------------------------------------------------------------------------


def _of_samples(samples: Iterator[Sample], file: File, at_most: int | None, template: PromptTemplate) -> Questions:
    first = next(samples)
    roles = [turn.role for turn in first.messages[:-1]]
    names = _names(roles)

    def items() -> Iterator[Item]:
        for number, sample in enumerate(chain([first], samples), start=1):
            *asked, answer = sample.messages
            if [turn.role for turn in asked] != roles:
                raise _mixed(file, number, [turn.role for turn in asked], roles)
            texts = (one_text(turn, template) for turn in asked)
            yield {**dict(zip(names, texts, strict=True)), "completion": answer.content}

    turns: list[tuple[str, str]] = [(role, f"{{{{item.{name}}}}}") for role, name in zip(roles, names, strict=True)]
    return Questions(_inline(items(), file, at_most), turns, "{{item.completion}}")


def _names(roles: list[Any]) -> list[str]:
    """What the turns before the answer are called in an item."""
    if roles in (["user"], ["system", "user"]):
        return ["system", "prompt"][-len(roles) :]
    return [f"turn_{number}" for number in range(1, len(roles) + 1)]


def _mixed(file: File, number: int, roles: list[Any], first: list[Any]) -> InvalidRequestError:
    return InvalidRequestError(
        f"Sample {number} of {file.filename} has the turns {', '.join(roles)} before its answer, and the first has "
        f"{', '.join(first)}. A run asks all in one form: choose a file whose samples have the same turns.",
        param="file",
        code="mixed_turns",
    )


# --- Items of a run's own --------------------------------------------------------------------------------------------


def _inline(items: Iterator[Item], file: File, at_most: int | None) -> InlineSource:
    """The items in the request itself. Raises InvalidRequestError when they are too many to be held at once."""
    content: list[InlineItem] = []
    characters = 0
    for item in islice(items, at_most):
        content.append(InlineItem(item=item))
        characters += len(json.dumps(item, ensure_ascii=False))
        if len(content) > MOST or characters > _MOST_CHARACTERS:
            raise InvalidRequestError(
                f"{file.filename} has more than {MOST:,} samples or {_MOST_CHARACTERS:,} characters to ask. "
                "Say here how many of its first samples to take.",
                param="at_most",
                code="too_many_items",
            )
    return InlineSource(type="file_content", content=content)
