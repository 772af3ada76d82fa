"""Which files hold a split: the README's header, or names; the cases are those of the Hub's documentation."""

import pytest

from core.errors import InvalidRequestError
from core.hub_layout import Chosen, choose, converted_layout, kind_of, layout_of


def splits(header, *paths):
    return layout_of(header, paths).configs


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["data.csv", "README.md"], {"train": ["data.csv"]}),
        (["train.csv", "test.csv", "notes.txt"], {"train": ["train.csv"], "test": ["test.csv"]}),
        (["my_train_file.jsonl", "dev-1.jsonl"], {"train": ["my_train_file.jsonl"], "validation": ["dev-1.jsonl"]}),
        (
            ["data/train/b.parquet", "data/train/a.parquet", "data/evaluation/a.parquet"],
            {"train": ["data/train/a.parquet", "data/train/b.parquet"], "test": ["data/evaluation/a.parquet"]},
        ),
        (
            ["data/odd.split-00001-of-00002-ab.parquet", "data/odd.split-00000-of-00002-cd.parquet", "train.csv"],
            {"odd.split": ["data/odd.split-00000-of-00002-cd.parquet", "data/odd.split-00001-of-00002-ab.parquet"]},
        ),
        (["constraints.csv", "retrained.csv"], {"train": ["constraints.csv", "retrained.csv"]}),
        (["a.parquet", "b.parquet", "c.csv", "dataset_infos.json"], {"train": ["a.parquet", "b.parquet"]}),
        (["a.jsonl", "a.parquet"], {"train": ["a.parquet"]}),
        ([".hidden/a.csv", "__pycache__/b.csv", "c.csv.gz"], {"train": ["c.csv.gz"]}),
    ],
)
def test_names_tell_the_split(paths, expected):
    assert splits({}, *paths) == {"default": expected}


def test_a_header_names_configurations_and_their_files():
    header = {
        "configs": [
            {"config_name": "main", "data_files": [{"split": "train", "path": "main/train-*"}]},
            {
                "config_name": "other", "default": True,
                "data_files": {"train": ["other/*.csv", "other/*.csv"], "rare": "deep/**/x.csv", "none": "no.csv"},
            },
            {"config_name": "all", "data_files": "**/*.csv"},
            {"config_name": "folder", "data_dir": "./folder/"},
            {"config_name": "inside", "data_dir": "folder", "data_files": ["train.csv"]},
            {"config_name": "builder-script's"},
            {"config_name": "nul\0", "data_files": "**"},
            {"config_name": "../up", "data_files": "**"},
            {"config_name": "bad-split", "data_files": {"a/b": "**", "\0": "**"}},
            "nonsense",
        ]
    }  # fmt: skip
    paths = [
        "main/train-0.parquet", "main/train-1.parquet", "main/test-0.parquet", "other/1.csv", "other/deep/2.csv",
        "deep/x.csv", "deep/a/b/x.csv", "folder/train.csv", "folder/test.csv",
    ]  # fmt: skip
    layout = layout_of(header, paths)
    assert layout.default == "other"
    assert layout.configs == {
        "main": {"train": ["main/train-0.parquet", "main/train-1.parquet"]},
        "other": {"train": ["other/1.csv"], "rare": ["deep/a/b/x.csv", "deep/x.csv"]},
        "all": {"train": [path for path in sorted(paths) if path.endswith(".csv")]},
        "folder": {"train": ["folder/train.csv"], "test": ["folder/test.csv"]},
        "inside": {"train": ["folder/train.csv"]},
        "bad-split": {},
    }


@pytest.mark.parametrize(
    "configs",
    [5, [], [{}], [{"config_name": "a"}], [{"data_files": 5}], [{"data_files": [[1]]}], [{"data_files": "x**y["}]],
)
def test_a_header_of_anything_is_borne(configs):
    made = splits({"configs": configs}, "train.csv")
    assert made in ({"default": {"train": ["train.csv"]}}, {"default": {}}), made


def test_a_pattern_names_nothing_outside():
    header = {
        "configs": [{"config_name": "a", "data_files": ["../secret.csv", "/etc/*.csv", "https://x.invalid/a.csv"]}]
    }
    assert splits(header, "a.csv") == {"a": {}}


def test_the_converted_branch_has_a_folder_for_each():
    paths = ["de/train/0001.parquet", "de/train/0000.parquet", "en/test/0000.parquet", "README.md", "x.parquet"]
    layout = converted_layout(paths)
    assert layout.configs == {
        "de": {"train": ["de/train/0000.parquet", "de/train/0001.parquet"]},
        "en": {"test": ["en/test/0000.parquet"]},
    }
    assert choose(layout, "org/it", "de", "train") == Chosen("de", "train", layout.configs["de"]["train"])


@pytest.mark.parametrize(
    ("paths", "config", "split", "code", "words"),
    [
        (["README.md", "a.zip"], None, "train", "no_readable_files", "no files that Hone reads"),
        (["a/train/0.parquet", "b/train/0.parquet"], None, "train", "config_required", "a, b"),
        (["a/train/0.parquet", "b/train/0.parquet"], "c", "train", "config_not_found", "a, b"),
        (["a/train/0.parquet", "a/dev/0.parquet"], None, "test", "split_not_found", "dev, train"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(paths, config, split, code, words):
    with pytest.raises(InvalidRequestError, match=words) as refusal:
        choose(converted_layout(paths), "org/it", config, split)
    assert refusal.value.code == code


def test_a_kind_is_told_by_the_end_of_the_name():
    names = ["a.parquet", "b.jsonl.gz", "C.CSV", "d.tsv", "e.txt", "f.gz", "g/state.json", "h.json", "i.parquet.gz"]
    assert [kind_of(name) for name in names] == ["parquet", "json", "csv", "tsv", None, None, None, "json", None]
