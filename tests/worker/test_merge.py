import json
import shutil
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from core.catalogue import FolderModel
from core.errors import TrainingError
from core.specs import LINEAR_LAYERS, QuantizationSpec
from worker.base_models import load_base
from worker.merge import densify_, merge_adapter_

IDS = torch.arange(5, 45).reshape(2, 20)


def load(folder: Path, quantization: str = "nf4", *, double: bool = True) -> nn.Module:
    entry = FolderModel(source="folder", path=folder)
    spec = QuantizationSpec(type=quantization, double_quantization=double)
    return load_base(entry, folder / "cache", spec, "float32").eval()


@pytest.fixture(scope="session")
def adapter(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter on every linear layer whose B is not zero."""
    return write_adapter(tiny_llama, tmp_path_factory.mktemp("adapter"))


def write_adapter(base: Path, folder: Path, **options) -> Path:
    torch.manual_seed(5)
    config = LoraConfig(
        **{"r": 4, "lora_alpha": 16, "target_modules": list(LINEAR_LAYERS), "task_type": "CAUSAL_LM"} | options
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model(IDS).logits


@pytest.mark.parametrize(("quantization", "double"), [("nf4", True), ("nf4", False), ("fp4", True)])
def test_a_dense_model_computes_what_the_quantized_one_does(tiny_llama, quantization, double):
    # In training mode (there is no dropout), because a processor with AVX512-BF16 would compute in bfloat16 otherwise.
    quantized = logits(load(tiny_llama, quantization, double=double).train())
    model = load(tiny_llama, quantization, double=double)
    assert sum(isinstance(layer, Linear4bit) for layer in model.modules()) == 14
    densify_(model)
    assert not any(isinstance(layer, Linear4bit) for layer in model.modules())
    assert not any(parameter.requires_grad or parameter.is_meta for parameter in model.parameters())
    torch.testing.assert_close(logits(model), quantized, rtol=1e-5, atol=1e-5)


def test_a_dense_model_is_the_quantized_base_and_not_the_original(tiny_llama):
    model, original = load(tiny_llama), AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    densify_(model)
    assert (logits(model) - logits(original)).abs().max() > 1e-3


@pytest.mark.parametrize(
    "options", [{}, {"r": 8, "lora_alpha": 8}, {"use_rslora": True}, {"target_modules": ["q_proj"]}]
)
def test_a_merged_model_computes_what_the_adapter_over_the_quantized_base_does(tiny_llama, tmp_path, options):
    folder = write_adapter(tiny_llama, tmp_path, **options)
    expected = logits(PeftModel.from_pretrained(load(tiny_llama), folder).train())
    model = load(tiny_llama)
    densify_(model)
    plain = logits(model)
    changed = merge_adapter_(model, folder)
    assert changed == (2 if options.get("target_modules") else 14)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)
    assert (expected - plain).abs().max() > 1e-2


def test_every_tensor_is_used_and_nothing_else_changes(tiny_llama, adapter):
    model = load(tiny_llama, "none")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    changed = merge_adapter_(model, adapter)
    assert 2 * changed == len(load_file(adapter / "adapter_model.safetensors"))
    differing = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert differing == {name for name in before if name.split(".")[-2] in LINEAR_LAYERS}
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("use_dora", True),
        ("rank_pattern", {"q_proj": 2}),
        ("alpha_pattern", {"q_proj": 2}),
        ("modules_to_save", ["lm_head"]),
        ("bias", "all"),
        ("init_lora_weights", "pissa"),
        ("fan_in_fan_out", True),
        ("peft_type", "IA3"),
        ("something_new", 1),
        ("r", "many"),
        ("r", 0),
    ],
)
def test_a_setting_that_the_merge_does_not_cover_is_refused(tiny_llama, adapter, tmp_path, name, value):
    shutil.copytree(adapter, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {name: value}))
    refuses(tiny_llama, tmp_path, name)


Q = "base_model.model.model.layers.0.self_attn.q_proj."


@pytest.mark.parametrize(
    ("remove", "add"),
    [
        (None, {"base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight": (4, 64)}),
        (None, {Q + "lora_magnitude_vector": (64,)}),
        (None, {"base_model.model.lm_head.weight": (512, 64)}),
        (Q + "lora_B.weight", {}),
        (Q + "lora_A.weight", {}),
        (Q + "lora_A.weight", {Q + "lora_A.weight": (4, 63)}),
        (Q + "lora_A.weight", {Q + "lora_A.weight": (3, 64)}),
    ],
)
def test_a_tensor_that_fits_nowhere_is_refused(tiny_llama, adapter, tmp_path, remove, add):
    shutil.copytree(adapter, tmp_path, dirs_exist_ok=True)
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors.pop(remove, None)
    tensors |= {name: torch.ones(shape) for name, shape in add.items()}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    refuses(tiny_llama, tmp_path, "tensor")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"not this"])
def test_a_file_that_is_missing_or_broken_is_refused(tiny_llama, adapter, tmp_path, name, content):
    shutil.copytree(adapter, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    refuses(tiny_llama, tmp_path, name)


def test_an_adapter_does_not_go_onto_layers_that_are_still_quantized(tiny_llama, adapter):
    with pytest.raises(TrainingError, match="no dense layer"):
        merge_adapter_(load(tiny_llama), adapter)


def refuses(base: Path, folder: Path, word: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(TrainingError, match=f"The adapter can't be merged.*{word}") as caught:
        merge_adapter_(model, folder)
    assert caught.value.code == "adapter_unusable"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_biases_stay():
    layer = nn.Sequential(nn.Linear(64, 64))
    quantized = nn.Sequential(Linear4bit(64, 64, compute_dtype=torch.float32, quant_type="nf4"))
    quantized.load_state_dict(layer.state_dict())
    quantized.to("cpu")
    densify_(quantized)
    assert type(quantized[0]) is nn.Linear
    assert torch.equal(quantized[0].bias, layer[0].bias)
