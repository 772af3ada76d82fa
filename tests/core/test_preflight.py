"""Preflights: what is counted is what the worker would find."""

import json
import random

import pytest

from core.base_card import CardTokenizer
from core.dataset import read_samples
from core.preflight import How, Profile, examine
from core.preflight_report import histogram, make_report, quantile
from core.prompts import Encoded, encode_sample

LIMIT = 20_000


def as_lines(rows) -> list[bytes]:
    return ["".join(json.dumps(row) + "\n" for row in rows).encode()]


def row(n: int, words: int = 3) -> dict[str, str]:
    return {"prompt": f"question {n} " + "why " * words, "completion": "because " * words}


@pytest.fixture(scope="module")
def tokenizer(tiny_llama):
    from core.catalogue import FolderModel
    from worker.card import make_card

    return CardTokenizer(make_card(FolderModel(source="folder", path=tiny_llama), tiny_llama))


def random_samples(seed: int, count: int) -> list[Encoded]:
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        trained = []
        for _ in range(rng.randint(1, 4)):
            trained += [False] * rng.randint(1, 30) + [True] * rng.randint(0, 20)
        made.append(Encoded(list(range(len(trained))), trained))
    return made


@pytest.mark.parametrize("cut", [1, 5, 16, 40, 64, 1000])
def test_counts_tell_exactly_what_a_cut_costs(cut):
    from core.preflight_report import _trained, cut_report

    samples = random_samples(cut, 200)
    profile = Profile()
    for sample in samples:
        profile.add(sample)
    profile = Profile.from_json(json.loads(json.dumps(profile.as_json())))
    lengths = [len(sample.input_ids) for sample in samples]
    told = cut_report(profile, cut, "as asked")
    assert told["samples"] == sum(length > cut for length in lengths)
    assert told["tokens"] == sum(max(0, length - cut) for length in lengths)
    assert told["nothing_trained"] == sum(not any(sample.trained[:cut]) for sample in samples)
    assert told["end_token_lost"] == sum(
        any(sample.trained) and not any(sample.trained[max(i for i, t in enumerate(sample.trained) if t) : cut])
        for sample in samples
    )
    assert _trained(profile, cut)["tokens"] == sum(sum(sample.trained[:cut]) for sample in samples)
    assert _trained(profile, cut)["of"] == sum(min(length, cut) for length in lengths)
    assert quantile(profile.lengths, 0.9) == sorted(lengths)[int(0.9 * (len(lengths) - 1))]


def test_a_histogram_holds_every_sample_and_its_last_bin_is_open():
    lengths = Profile().lengths
    lengths.update({10: 500, 40: 300, 100: 190, 5000: 10})
    made = histogram(lengths)
    assert sum(made["counts"]) == 1000
    assert len(made["edges"]) == len(made["counts"]) + 1
    assert made["edges"] == sorted(set(made["edges"]))
    assert made["edges"][-1] == 5001
    assert made["counts"][-1] == 10
    assert len(made["counts"]) <= 25


def test_a_preflight_tells_lengths_duplicates_overlap_and_problems(tokenizer):
    rows = [row(n, words=n) for n in range(1, 40)]
    training = [*rows, rows[3], {"prompt": rows[5]["prompt"], "completion": "other"}, {"prompt": "x"}, rows[3]]
    told: list[tuple[int, int]] = []
    found = examine(
        as_lines(training),
        LIMIT,
        How(tokenizer, "chat"),
        validation=as_lines([rows[5], rows[7], row(99)]),
        on_progress=lambda read, samples: told.append((read, samples)),
    )
    report = make_report(json.loads(json.dumps(found)), asked="auto", context_length=512, note=None)
    good = list(read_samples(as_lines([one for one in training if len(one) == 2]), LIMIT))
    lengths = [len(encode_sample(sample, "chat", tokenizer).input_ids) for sample in good]
    assert report["samples"] == 42
    assert report["problems"]["kinds"] == [{"kind": "missing_field", "count": 1}]
    assert report["problems"]["first"][0]["line"] == 42
    assert report["lengths"]["total"] == sum(lengths)
    assert report["lengths"]["longest"] == max(lengths)
    assert report["lengths"]["longest_samples"][0] == {"line": 39, "length": max(lengths)}
    assert report["duplicates"] == {
        "count": 2, "first": [{"line": 40, "same_as": 4}, {"line": 43, "same_as": 4}],
    }  # fmt: skip
    assert report["overlap"] == {
        "samples": 3, "count": 2, "prompts": 3,
        "first": [{"line": 6, "validation_line": 1}, {"line": 8, "validation_line": 2}],
    }  # fmt: skip
    assert report["cut"]["max_seq_length"] % 64 == 0
    assert 0 < report["trained"]["share"] < 1
    assert told[-1][0] == len(as_lines(training)[0])
    assert any("can't be used" in line for line in report["advice"])


def test_how_samples_are_batched_changes_nothing(tokenizer, monkeypatch):
    rows = [row(n % 30, words=1 + n % 17) for n in range(100)]
    lines = as_lines([{"prompt": "no answer"} if n % 13 == 5 else one for n, one in enumerate(rows)])
    found = examine(lines, LIMIT, How(tokenizer, "chat"), validation=as_lines(rows[:3]))
    assert (found["samples"], found["problems"]["count"]) == (92, 8)
    for samples, characters in ((1, 10**9), (3, 10**9), (256, 100), (100, 10**9)):
        monkeypatch.setattr("core.preflight._BATCH_SAMPLES", samples)
        monkeypatch.setattr("core.preflight._BATCH_CHARACTERS", characters)
        assert examine(lines, LIMIT, How(tokenizer, "chat"), validation=as_lines(rows[:3])) == found


def test_without_a_tokenizer_characters_are_counted():
    found = examine(as_lines([{"prompt": "ab", "completion": "cde"}]), LIMIT, How())
    report = make_report(found, asked="auto", context_length=None, note="why")
    assert (report["lengths"]["unit"], report["lengths"]["longest"], report["cut"]) == ("characters", 5, None)
    assert report["note"] == "why"


def test_a_sample_that_the_template_refuses_is_a_problem_of_its_line(tokenizer):
    card = tokenizer.card.model_copy(update={"chat_template": "{{ raise_exception('roles must alternate') }}"})
    found = examine(as_lines([row(1), row(2)]), LIMIT, How(CardTokenizer(card), "chat"))
    assert found["samples"] == 0
    assert found["problems"]["count"] == 2
    assert "roles must alternate" in found["problems"]["first"][0]["reason"]
    assert make_report(found, asked="auto", context_length=512, note=None)["cut"] is None


@pytest.mark.parametrize("raw", [b"", b"\n", b"{}", b"\xff" * 100, b"[]"])
def test_a_file_without_samples_has_a_report(raw):
    report = make_report(examine([raw], LIMIT, How()), asked=64, context_length=None, note=None)
    assert report["samples"] == 0
    assert report["lengths"]["longest"] == 0
    assert report["advice"]


def test_a_preference_is_as_long_as_the_longer_of_its_answers(tokenizer):
    def pair(preferred: str, rejected: str) -> dict:
        return {
            "input": {"messages": [{"role": "user", "content": "q"}]},
            "preferred_output": [{"role": "assistant", "content": preferred}],
            "non_preferred_output": [{"role": "assistant", "content": rejected}],
        }

    rows = [pair("yes", "no " * 20), pair("yes " * 20, "no"), pair("yes", "no " * 20), pair("yes", "never")]
    found = examine(as_lines(rows), LIMIT, How(tokenizer, "chat"))
    assert (found["format"], found["samples"], found["duplicates"]["count"]) == ("preference", 4, 1)
    long = json.dumps({"prompt": "q", "completion": "no " * 20}).encode()
    (want,) = read_samples([long], LIMIT)
    assert len(encode_sample(want, "chat", tokenizer).input_ids) in dict(map(tuple, found["profile"]["lengths"]))
    by_characters = examine(as_lines(rows), LIMIT, How())
    assert by_characters["profile"]["lengths"][-1][0] == 1 + len("yes " * 20)
