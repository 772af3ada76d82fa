"""Sequences: from samples to rows, and rows laid end to end."""

import json

import numpy as np
import pytest
from transformers import AutoTokenizer

from core.dataset import Sample, to_sample
from core.errors import TrainingError
from core.prompts import Encoded
from tests.worker.test_prompts import CHAT, INSTRUCTION, TEMPLATES
from worker import prompts, pulse
from worker.prompts import encode_sample
from worker.sequences import IGNORED, Sequences, collate, encode, length_report, to_dataset

WEIGHTED = to_sample(
    {
        "messages": [
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "eins", "weight": 0},
            {"role": "user", "content": "<|im_end|> zwei é 漢字"},
            {"role": "assistant", "content": " drei", "weight": 1},
        ]
    },
    "chat",
)


@pytest.fixture(scope="module")
def tokenizer(tiny_llama):
    return AutoTokenizer.from_pretrained(tiny_llama)


@pytest.fixture(scope="module")
def beginning(tokenizer):
    """A tokenizer that begins every text with a token, and pads and cuts unless told not to."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    inner = tokenizer.backend_tokenizer.__class__.from_str(tokenizer.backend_tokenizer.to_str())
    inner.add_special_tokens(["<s>", "</s>"])
    inner.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", inner.token_to_id("<s>"))])
    inner.enable_padding(length=40)
    inner.enable_truncation(3)
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<|endoftext|>")


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("system", [None, "Be kind."])
def test_samples_encoded_together_have_the_tokens_of_each_alone(template, system, tokenizer, beginning, monkeypatch):
    monkeypatch.setattr(prompts, "_BATCH_SAMPLES", 4)
    samples = [INSTRUCTION, CHAT, WEIGHTED, Sample(INSTRUCTION.messages, "instruction")] * 3 + [CHAT]
    for each in (tokenizer, beginning):
        if template == "chat" and each is beginning:
            continue
        alone = [encode_sample(sample, template, each, system) for sample in samples]
        assert encode(samples, template, each, system) == alone


def test_texts_tokenized_together_have_the_tokens_that_transformers_finds(tokenizer, beginning):
    texts = ["", " ", "def f(x):\n\treturn x", "<s> </s><|im_end|>", "é 漢字 \U0001f600", "a" * 3000]
    for each in (tokenizer, beginning):
        found = prompts._Tokenizer(each).encode_all(texts)
        assert found == [each.encode(text, add_special_tokens=False) for text in texts]


def test_encoding_keeps_the_pulse(tokenizer, monkeypatch):
    beats = []
    monkeypatch.setattr(pulse, "beat", lambda: beats.append(1))
    monkeypatch.setattr(prompts, "_BATCH_CHARACTERS", 20)
    encode([INSTRUCTION] * 10, "none", tokenizer, None)
    assert len(beats) >= 5


def encoded(*trained: str) -> list[Encoded]:
    """Sequences of tokens 1, 2, ...; an x is a trained one."""
    return [Encoded(list(range(1, len(one) + 1)), [mark == "x" for mark in one]) for one in trained]


def test_rows_are_cut_and_those_that_train_nothing_are_dropped():
    rows = to_dataset(encoded("..xx", "x...", "....x", ".x"), 4)
    assert rows.to_dict() == {
        "input_ids": [[1, 2, 3, 4], [1, 2]],
        "labels": [[IGNORED, IGNORED, 3, 4], [IGNORED, 2]],
    }
    assert rows[1] == {"input_ids": [1, 2], "labels": [IGNORED, 2]}
    with pytest.raises(TrainingError, match="No sample has a trained token within 2 tokens"):
        to_dataset(encoded("..xx", ""), 2)


def test_the_report_counts_before_and_after_the_cut():
    sequences = Sequences(encoded("..xx", "x...", "..xxxx"), encoded(".x"))
    report = length_report(sequences, to_dataset(sequences.train, 5), to_dataset(sequences.validation, 5), 5)
    assert report["tokens"]["total"] == 14
    assert {name: report[name] for name in ("train_samples", "cut_samples", "dropped_samples")} == {
        "train_samples": 2, "cut_samples": 1, "dropped_samples": 1,
    }  # fmt: skip
    assert (report["tokens_per_epoch"], report["trained_tokens_per_epoch"], report["trained_share"]) == (9, 5, 0.5556)
    assert json.dumps(report)
    assert not any(isinstance(value, np.generic) for value in report.values())


def test_a_row_holds_whole_samples_end_to_end() -> None:
    rows = [{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}, {"input_ids": [8, 9], "labels": [IGNORED, 9]}]
    batch = collate(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7, IGNORED, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert batch["bounds"].tolist() == [0, 3, 5]
    assert batch["lengths"] == [3, 2]
    assert batch["trained"].tolist() == [0, 1, 3]
    assert batch["targets"].tolist() == [6, 7, 9]
