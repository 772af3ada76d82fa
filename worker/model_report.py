"""The model in numbers: parameters, what is trained of them, and the memory that training needs."""

import math
from typing import Any

from torch import nn


def count(parameter: nn.Parameter) -> int:
    """Weights that a parameter stands for; a 4-bit one holds two in a byte and remembers its shape."""
    state = getattr(parameter, "quant_state", None)
    return math.prod(state.shape) if state is not None else parameter.numel()


def model_report(model: nn.Module) -> dict[str, Any]:
    """Parameters, trainable ones, bytes at 32 bits and as loaded, and the arithmetic of full training against QLoRA.

    Full training with Adam in 32 bits needs, a parameter, 4 bytes of weights, 4 of gradients, 8 of Adam's moments and
    about 8 of activations and temporaries; with adapters, gradients and moments are needed for the adapters alone.
    """
    parameters = sum(count(parameter) for parameter in model.parameters())
    trainable = sum(count(parameter) for parameter in model.parameters() if parameter.requires_grad)
    loaded = _loaded_bytes(model)
    return {
        "parameters": parameters,
        "trainable_parameters": trainable,
        "trainable_percent": round(100 * trainable / parameters, 4),
        "bytes_at_32_bits": 4 * parameters,
        "bytes_as_loaded": loaded,
        "memory_full_training": {
            "weights": 4 * parameters,
            "gradients": 4 * parameters,
            "adam_moments": 8 * parameters,
            "activations_and_temporaries": 8 * parameters,
        },
        "memory_qlora": {"weights": loaded, "gradients": 4 * trainable, "adam_moments": 8 * trainable},
    }


def _loaded_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers, the quantization's constants included; a weight that is tied counts once."""
    tensors = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        tensors[id(tensor)] = tensor.numel() * tensor.element_size()
    return sum(tensors.values()) + sum(_constant_bytes(parameter) for parameter in model.parameters())


def _constant_bytes(parameter: nn.Parameter) -> int:
    state = getattr(parameter, "quant_state", None)
    if state is None:
        return 0
    constants = state.absmax.numel() * state.absmax.element_size()
    if state.nested:
        constants += state.state2.absmax.numel() * state.state2.absmax.element_size()
    return int(constants)
