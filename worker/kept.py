"""What an earlier attempt of an evaluation has answered and graded: JSON lines that the worker writes for its child.

A line is ``{"side", "position", "answer": {"text", "tokens", "finish_reason"}, "grades": [...] or null}``.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from worker.answer import Answer

Side = Literal["model", "base"]


@dataclass
class Kept:
    """Answers and grades by item, of each side."""

    answers: dict[Side, dict[int, Answer]] = field(default_factory=lambda: {"model": {}, "base": {}})
    grades: dict[Side, dict[int, list[dict[str, Any]]]] = field(default_factory=lambda: {"model": {}, "base": {}})

    def __len__(self) -> int:
        return sum(len(answers) for answers in self.answers.values())


def read_kept(path: Path | None) -> Kept:
    """Read the lines; nothing for None."""
    kept = Kept()
    if path is None:
        return kept
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            kept.answers[row["side"]][row["position"]] = Answer(**row["answer"])
            if row["grades"] is not None:
                kept.grades[row["side"]][row["position"]] = row["grades"]
    return kept


def write_kept(path: Path, rows: Iterable[tuple[str, int, dict[str, Any], list[dict[str, Any]] | None]]) -> None:
    """Write a line for each (side, position, answer, grades)."""
    with path.open("w", encoding="utf-8") as file:
        for side, position, answer, grades in rows:
            line = {"side": side, "position": position, "answer": answer, "grades": grades}
            file.write(json.dumps(line) + "\n")
