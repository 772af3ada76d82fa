"""From a quantized base and an adapter to the one dense model that was trained.

Training computed with the base's 4-bit weights, dequantized layer by layer, plus the adapter. Evaluation computes
with the same function: the dequantized weights, and the adapter added to those. Adding it to the original 16-bit
weights would be another model than the one trained; dense weights also make generation several times faster than
4-bit ones.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from safetensors.torch import load_file
from torch import Tensor, nn

from core.errors import TrainingError

_PREFIX = "base_model.model."

#: Settings of an adapter that this merge understands, or that change nothing once training is over. Anything else
#: that is set (DoRA, ranks by layer, whole modules saved, …) means weights that are not (alpha / r) * B * A, and is
#: refused.
_COVERED = frozenset(
    [
        *("peft_type", "r", "lora_alpha", "use_rslora", "lora_dropout", "bias", "init_lora_weights"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "qalora_group_size"),
        *("task_type", "inference_mode", "auto_mapping", "base_model_name_or_path", "revision", "peft_version"),
        *("megatron_core", "runtime_config"),
    ]
)
_EXPECTED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    # Others (PiSSA, CorDA, LoftQ, …) change the base's weights at the start.
    "init_lora_weights": (True, False, "gaussian", "orthogonal", None),
}


@torch.no_grad()
def densify_(model: nn.Module) -> None:
    """Replace every 4-bit linear layer by a dense one in its compute type, one after another, in place.

    The model has run no forward pass yet: on some processors the first one repacks the 4-bit weights.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Linear4bit):
                setattr(parent, name, _dense(child))


def _dense(layer: Linear4bit) -> nn.Linear:
    state = layer.weight.quant_state
    dtype = layer.compute_dtype or state.dtype
    weight = dequantize_4bit(layer.weight.data, state).to(dtype)
    dense = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    dense.weight = nn.Parameter(weight, requires_grad=False)
    if layer.bias is not None:
        dense.bias = nn.Parameter(layer.bias.data.to(dtype), requires_grad=False)
    return dense


@torch.no_grad()
def merge_adapter_(model: nn.Module, folder: Path) -> int:
    """Add an adapter's ``scale * B @ A``, computed in float32, to the dense weights. Returns the layers changed.

    ``folder`` has adapter_config.json and adapter_model.safetensors. Raises TrainingError, with the model unchanged,
    when a setting is not covered or a tensor has no layer to go to.
    """
    scale = _scale(folder)
    updates = _match(model, _read_tensors(folder))
    for layer, a, b in updates:
        device = layer.weight.device
        update = scale * (b.to(device, torch.float32) @ a.to(device, torch.float32))
        layer.weight.copy_(layer.weight.to(torch.float32).add_(update))
    return len(updates)


def _scale(folder: Path) -> float:
    try:
        config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _refusal(f"its adapter_config.json can't be read ({type(error).__name__})") from error
    for name, value in config.items():
        if name not in _COVERED and value:
            raise _refusal(f"its setting {name} = {value!r:.80} is not supported")
    for name, known in _EXPECTED.items():
        if config.get(name) not in known:
            raise _refusal(f"its setting {name} = {config.get(name)!r:.80} is not supported")
    try:
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
        return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise _refusal("its settings r and lora_alpha are not numbers above 0") from error


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(folder / "adapter_model.safetensors")
    except Exception as error:  # safetensors has an exception of its own for each way a file can be broken
        raise _refusal(f"its adapter_model.safetensors can't be read ({error!s:.200})") from error
    return tensors


def _match(model: nn.Module, tensors: dict[str, Tensor]) -> list[tuple[nn.Linear, Tensor, Tensor]]:
    """Each layer with its A (r x in) and B (out x r); every tensor is in one of them."""
    left = dict(tensors)
    layers = dict(model.named_modules())
    updates = []
    for name in sorted(tensors):
        if not name.endswith(".lora_A.weight"):
            continue
        stem = name.removesuffix("lora_A.weight")
        a, b = left.pop(name), left.pop(f"{stem}lora_B.weight", None)
        layer = layers.get(stem.removeprefix(_PREFIX).removesuffix("."))
        if b is None or type(layer) is not nn.Linear:
            raise _refusal(f"its tensor {name} has no dense layer or no partner")
        if layer.weight.shape != (b.shape[0], a.shape[1]) or b.shape[1] != a.shape[0]:
            raise _refusal(
                f"its tensors {stem}* have shapes that do not fit the base model's {tuple(layer.weight.shape)}"
            )
        updates.append((layer, a, b))
    if left or not updates:
        raise _refusal(f"its tensor {next(iter(left))} is not part of a LoRA pair" if left else "it has no tensors")
    return updates


def _refusal(reason: str) -> TrainingError:
    return TrainingError(
        f"The adapter can't be merged: {reason}. Evaluate an adapter that Hone trained on this base model.",
        code="adapter_unusable",
    )
