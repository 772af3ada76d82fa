"""The adapter around a base."""

import warnings

from transformers import AutoModelForCausalLM

from core.specs import LoraSpec
from worker.trainer import add_adapter


def test_saving_an_adapter_asks_no_hub(tiny_llama, tmp_path, monkeypatch):
    model = add_adapter(AutoModelForCausalLM.from_pretrained(tiny_llama), LoraSpec(), name="tiny", seed=1)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # PEFT looks at it for each save
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PEFT warns where it could not ask
        model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").is_file()
