"""README.md's tables and graph say what the code says."""

import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from core.settings import Settings
from core.specs import HoneSpec, Hyperparameters
from models.status import TRANSITIONS

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def rows_after(marker: str) -> list[list[str]]:
    """The rows of the table after a comment that begins with ``marker``, without its two lines of heading."""
    lines = README.split(f"<!-- {marker}", 1)[1].splitlines()[1:]
    table = lines[: next(n for n, line in enumerate(lines) if not line.startswith("|"))]
    return [[cell.strip() for cell in line.strip("|").replace(r"\|", "\0").split("|")] for line in table[2:]]


def cell(text: str) -> str:
    return text.replace("|", "\0")


def shown(value: Any) -> str:
    return "unset" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def settings_rows() -> list[list[str]]:
    return [
        [f"`HONE_{name.upper()}`", shown(field.default), cell(field.description or "")]
        for name, field in Settings.model_fields.items()
    ]


def option_rows(model: type[BaseModel], prefix: str) -> list[list[str]]:
    rows = []
    for name, field in model.model_fields.items():
        if isinstance(field.default, BaseModel):
            rows += option_rows(type(field.default), f"{prefix}{name}.")
        else:
            rows.append([f"`{prefix}{name}`", shown(field.default), cell(field.description or "")])
    return rows


def test_the_settings_table_is_the_code():
    assert rows_after("settings") == settings_rows()


def test_the_options_table_is_the_code():
    assert rows_after("options") == option_rows(Hyperparameters, "hyperparameters.") + option_rows(HoneSpec, "hone.")


def test_the_graph_is_the_code():
    drawn = set(re.findall(r"^ +(\w+) --> (\w+)$", README, flags=re.MULTILINE))
    assert drawn == {(str(source), str(target)) for source, targets in TRANSITIONS.items() for target in targets}
    ends = set(re.findall(r"^ +(\w+) --> \[\*\]$", README, flags=re.MULTILINE))
    assert ends == {str(status) for status, targets in TRANSITIONS.items() if not targets}


def test_the_layers_are_told_as_import_linter_holds_them():
    assert "`core <- models <- (api | worker) <- cli`" in README


def test_every_folder_of_the_tree_is_there():
    tree = README.split("## The tree", 1)[1].split("```")[1]
    folders = re.findall(r"^(\w+)/", tree, flags=re.MULTILINE)
    assert folders
    assert [folder for folder in folders if not (Path(__file__).parents[2] / folder).is_dir()] == []
