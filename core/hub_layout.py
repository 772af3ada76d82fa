"""Which files of a dataset's repository hold a split, by the rules that the Hub documents.

The README's header may name configurations (subsets) with the files of each split; else names of folders and files
tell the split (huggingface.co/docs/hub/datasets-manual-configuration and …/datasets-file-names-and-splits).
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from fsspec.utils import glob_translate

from core.errors import InvalidRequestError
from core.hub_order import CONFIG, SPLIT

Kind = Literal["parquet", "json", "csv", "tsv"]
Splits = dict[str, list[str]]

_KINDS: dict[str, Kind] = {
    ".parquet": "parquet",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
}
#: Files about a dataset, which hold none of its rows.
_ABOUT = {"config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SHARD = re.compile(r"data/(\w+(?:\.\w+)*)-\d{5}-of-\d{5}[^/]*")
_CONVERTED = re.compile(r"[^/]+/[^/]+/\d{4,}\.parquet")
#: Splits and configurations that an error lists.
_LISTED = 40


@dataclass(frozen=True)
class Layout:
    """Configuration -> split -> files; ``default`` is taken when a request names none."""

    configs: dict[str, Splits] = field(default_factory=dict)
    default: str | None = None


@dataclass(frozen=True)
class Chosen:
    """A split's files in their order."""

    config: str
    split: str
    paths: list[str]


def kind_of(path: str) -> Kind | None:
    """How a file is read, by its name; None for what can't be. After a text's, ``.gz`` may follow."""
    whole = PurePosixPath(path).name.lower()
    name = whole.removesuffix(".gz")
    kind = None if name in _ABOUT else _KINDS.get(PurePosixPath(name).suffix)
    return None if kind == "parquet" and name != whole else kind


def layout_of(header: Mapping[str, Any], paths: Sequence[str]) -> Layout:
    """The configurations of a repository with these files, whose README has this header."""
    data = sorted(path for path in paths if kind_of(path) and not _is_hidden(path))
    configs: dict[str, Splits] = {}
    default = None
    for entry in _entries(header):
        name = str(entry.get("config_name", "default"))
        if re.fullmatch(CONFIG, name) is None:  # nobody could ask for it
            continue
        splits = _named_splits(entry, data)
        configs[name] = {
            split: _of_one_kind(found) for split, found in splits.items() if found and re.fullmatch(SPLIT, split)
        }
        if entry.get("default") is True:
            default = name
    if not configs and data:
        configs["default"] = {split: _of_one_kind(found) for split, found in _guessed_splits(data).items()}
    return Layout(configs, default or _default_of(configs))


def is_converted(paths: Sequence[str]) -> bool:
    """Whether these are the files of the Hub's own conversion to Parquet, be it at a commit."""
    data = [path for path in paths if not _is_hidden(path)]
    return bool(data) and all(_CONVERTED.fullmatch(path) for path in data)


def converted_layout(paths: Sequence[str]) -> Layout:
    """The configurations of the Hub's own conversion to Parquet: ``CONFIG/SPLIT/0000.parquet``."""
    configs: dict[str, Splits] = {}
    for path in sorted(paths):
        parts = path.split("/")
        if len(parts) == 3 and kind_of(path) == "parquet":
            configs.setdefault(parts[0], {}).setdefault(parts[1], []).append(path)
    return Layout(configs, _default_of(configs))


def _default_of(configs: Mapping[str, Splits]) -> str | None:
    """The configuration of that name, or the only one."""
    return "default" if "default" in configs else next(iter(configs)) if len(configs) == 1 else None


def choose(layout: Layout, dataset: str, config: str | None, split: str) -> Chosen:
    """A split's files. Raises InvalidRequestError, listing what there is."""
    if not layout.configs:
        raise InvalidRequestError(
            f"The dataset '{dataset}' has no files that Hone reads: Parquet, JSON lines, JSON arrays, CSV or TSV. "
            "Convert it, and upload the result.",
            param="dataset",
            code="no_readable_files",
        )
    name = config or layout.default
    if name is None:
        raise InvalidRequestError(
            f"The dataset '{dataset}' has several configurations: {_list(layout.configs)}. Name one with 'config'.",
            param="config",
            code="config_required",
        )
    if name not in layout.configs:
        raise InvalidRequestError(
            f"The dataset '{dataset}' has no configuration '{name}', but: {_list(layout.configs)}.",
            param="config",
            code="config_not_found",
        )
    splits = layout.configs[name]
    if split not in splits:
        known = _list(splits) if splits else "none with files that Hone reads"
        raise InvalidRequestError(
            f"The dataset '{dataset}', configuration '{name}', has no split '{split}', but: {known}.",
            param="split",
            code="split_not_found",
        )
    return Chosen(name, split, splits[split])


def _list(names: Iterable[str]) -> str:
    found = sorted(names)
    more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    return ", ".join(name[:100] for name in found[:_LISTED]) + more


def _is_hidden(path: str) -> bool:
    return any(part.startswith((".", "__")) for part in path.split("/"))


# --- The header ------------------------------------------------------------------------------------------------------


def _entries(header: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the header says of configurations that have files of their own; anybody may have written it."""
    configs = header.get("configs")
    found = configs if isinstance(configs, list) else []
    return [entry for entry in found if isinstance(entry, dict) and ("data_files" in entry or "data_dir" in entry)]


def _named_splits(entry: Mapping[str, Any], paths: Sequence[str]) -> Splits:
    folder = entry.get("data_dir")
    name = str(PurePosixPath(folder)).strip("/") if isinstance(folder, str) else ""
    inside = f"{name}/" if name not in ("", ".") else ""
    files = entry.get("data_files")
    if files is None:
        mine = [path for path in paths if path.startswith(inside)]
        return {
            split: [inside + path for path in found]
            for split, found in _guessed_splits([path.removeprefix(inside) for path in mine]).items()
        }
    return {split: _matching(patterns, inside, paths) for split, patterns in _patterns(files).items()}


def _patterns(files: Any) -> dict[str, list[str]]:
    """``data_files`` in each of its shapes, as patterns by split."""
    if isinstance(files, str):
        return {"train": [files]}
    if isinstance(files, dict):
        return {str(split): _texts(patterns) for split, patterns in files.items()}
    found: dict[str, list[str]] = {}
    for one in files if isinstance(files, list) else []:
        if isinstance(one, str):
            found.setdefault("train", []).append(one)
        elif isinstance(one, dict):
            found.setdefault(str(one.get("split", "train")), []).extend(_texts(one.get("path")))
    return found


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [one for one in values if isinstance(one, str)]


def _matching(patterns: Sequence[str], inside: str, paths: Sequence[str]) -> list[str]:
    """The files that any of the patterns names, each once; a pattern that names a place elsewhere names none."""
    found: dict[str, None] = {}
    for pattern in patterns:
        try:
            matches = re.compile(glob_translate(inside + pattern.removeprefix("./"))).match
        except (ValueError, re.error):  # the README's author wrote something else
            continue
        found |= dict.fromkeys(path for path in paths if matches(path))
    return list(found)


# --- Names -----------------------------------------------------------------------------------------------------------


def _guessed_splits(paths: Sequence[str]) -> Splits:
    """By ``data/SPLIT-00000-of-00004``, else by a word in a folder's name, else in a file's; else all is ``train``."""
    shards: Splits = {}
    for path in paths:
        if found := _SHARD.fullmatch(path):
            shards.setdefault(found[1], []).append(path)
    if shards:
        return shards
    by_folder = _by_word(paths, lambda path: path.split("/")[:-1])
    by_name = _by_word(paths, lambda path: [path.rpartition("/")[2]])
    return by_folder or by_name or {"train": list(paths)}


def _by_word(paths: Sequence[str], parts: Callable[[str], Sequence[str]]) -> Splits:
    """Files by the split that one of their ``parts`` names; files without such a word are left out."""
    splits: Splits = {}
    for path in paths:
        words = {word for part in parts(path) for word in re.split(r"[-._ 0-9]+", part)}
        for split, known in _WORDS.items():
            if words & set(known):
                splits.setdefault(split, []).append(path)
                break
    return splits


def _of_one_kind(paths: list[str]) -> list[str]:
    """The files of the kind that most have: repositories keep the same rows in several, and notes beside them."""
    counts = Counter(kind_of(path) for path in paths)
    most = max(counts, key=lambda kind: (counts[kind], kind == "parquet"), default=None)
    return [path for path in paths if kind_of(path) == most]
