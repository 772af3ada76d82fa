import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from core.catalogue import FolderModel
from core.dataset import Message
from core.errors import TrainingError
from core.specs import EvaluationSpec, FineTuneSpec, QuantizationSpec
from worker.answers import TrainedWith, encode_items, read_training
from worker.items import Item
from worker.protocol import EvaluationInput


def write_manifest(folder: Path, hone: dict) -> None:
    (folder / "manifest.json").write_text(json.dumps({"spec": {"hone": hone}}))


def test_an_adapters_manifest_says_how_its_base_was_kept_and_asked(tmp_path: Path):
    hone = {"quantization": {"type": "fp4"}, "data": {"system_prompt": "You write Python."}}
    spec = FineTuneSpec.model_validate({"model": "m", "training_file": "f", "hone": hone})
    write_manifest(tmp_path, spec.model_dump(mode="json")["hone"])
    assert read_training(tmp_path) == TrainedWith(QuantizationSpec(type="fp4"), "You write Python.")


def test_without_an_adapter_or_its_manifest_the_defaults_hold(tmp_path: Path):
    assert read_training(None) == read_training(tmp_path) == TrainedWith(QuantizationSpec(), None)


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", "{}", '{"spec": {"hone": {"quantization": {}}}}', '{"spec": {"hone": {"data": {}}}}'),
        '{"spec": {"hone": {"quantization": {"type": "int3"}, "data": {}}}}',
        '{"spec": {"hone": {"quantization": {}, "data": {"system_prompt": 1}}}}',
    ],
)
def test_a_manifest_that_does_not_say_is_refused(tmp_path: Path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(TrainingError, match=r"manifest\.json does not say"):
        read_training(tmp_path)


def test_the_system_prompt_stands_before_messages_that_have_none(tiny_llama: Path, tmp_path: Path):
    entry = FolderModel(source="folder", path=tiny_llama)
    spec = EvaluationSpec(
        model="m",
        base_model="m",
        items_file="f",
        messages=({"role": "user", "content": "Hello."},),
        criteria=({"type": "code_bleu", "name": "c", "input": "{{sample.output_text}}", "reference": "x"},),
    )
    job = EvaluationInput(job_id="j", spec=spec, base_model=entry, cache=tmp_path, items_file=tmp_path)
    user = Message("user", "Hello.")
    items = [Item(1, {}, (user,)), Item(2, {}, (Message("system", "Be brief."), user))]
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    without, own = (tokenizer.decode(prompt) for prompt in encode_items(job, items, tokenizer, "You write Python."))
    assert without.startswith("<|im_start|>system\nYou write Python.<|im_end|>\n<|im_start|>user\nHello.")
    assert own.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello.")
    assert "Python" not in own
