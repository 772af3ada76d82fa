"""A decoder layer of Llama's family on rows of single tokens, in as few kernels as it takes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from worker.fast import ops


class Layer:
    """A layer's own weights, side by side where they share an input: a small step waits for launches, not for bytes.

    The layer's modules keep working, and what is added to their weights in place is seen here: they become views of
    one tensor.
    """

    def __init__(self, layer: nn.Module, head: int) -> None:
        attention: Any = layer.self_attn
        mlp: Any = layer.mlp
        self._norms: tuple[Any, Any] = (layer.input_layernorm, layer.post_attention_layernorm)
        self._head_norms: tuple[Any, Any] = (getattr(attention, "q_norm", None), getattr(attention, "k_norm", None))
        projections = [attention.q_proj, attention.k_proj, attention.v_proj]
        self._heads = [projection.out_features // head for projection in projections]
        self._head = head
        self._qkv, self._qkv_bias = join_weights_(projections), _join_biases(projections)
        self._gate_up = join_weights_([mlp.gate_proj, mlp.up_proj])
        self._gate_up_bias = _join_biases([mlp.gate_proj, mlp.up_proj])
        self._o, self._down = attention.o_proj, mlp.down_proj

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [tokens, heads, head] of ``x`` [tokens, H], not yet rotated."""
        qkv = linear(norm(self._norms[0], x), self._qkv, self._qkv_bias).view(len(x), -1, self._head)
        q, k, v = torch.split(qkv, self._heads, 1)
        for heads, of_heads in zip((q, k), self._head_norms, strict=True):
            if of_heads is not None:  # Qwen3
                heads.copy_(norm(of_heads, heads.reshape(-1, self._head)).view_as(heads))
        return q, k, v

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The layer's output [tokens, H] from its input ``x`` and what attention gave [tokens, heads, head]."""
        x = _add_linear(x, mixed.reshape(len(x), -1), self._o)
        gate_up = linear(norm(self._norms[1], x), self._gate_up, self._gate_up_bias)
        product = gate_up.new_empty(len(x), gate_up.shape[1] // 2)
        ops.swiglu_forward(gate_up, product)
        return _add_linear(x, product, self._down)


def norm(module: Any, x: Tensor) -> Tensor:
    """An RMS norm of ``x`` [rows, width]: the module's own on the processor, one kernel in place of six on a GPU."""
    if not x.is_cuda:
        return module(x)  # type: ignore[no-any-return]
    out = torch.empty_like(x)
    ops.rms_norm_forward(x, module.weight, module.variance_epsilon, out)
    return out


def _add_linear(x: Tensor, inner: Tensor, layer: Any) -> Tensor:
    """``x`` plus the layer's output; on a GPU the addition is part of the matmul."""
    if layer.bias is not None:
        x = x + layer.bias
    return torch.addmm(x, inner, layer.weight.t())


def join_weights_(layers: Sequence[nn.Linear]) -> Tensor:
    """One tensor [sum of outs, in] of all layers' weights, which become views of it; nothing is copied twice."""
    weights = [layer.weight.data for layer in layers]
    first, rows = weights[0], sum(len(weight) for weight in weights)
    if not _adjacent(weights):
        joined = torch.cat(weights)
        for layer, part in zip(layers, torch.split(joined, [len(weight) for weight in weights]), strict=True):
            layer.weight.data = part
        return joined
    return first.as_strided((rows, first.shape[1]), (first.shape[1], 1))


def _adjacent(weights: Sequence[Tensor]) -> bool:
    """Whether the tensors are already parts of one, in their order."""
    storage, place = weights[0].untyped_storage().data_ptr(), weights[0].storage_offset()
    for weight in weights:
        if weight.untyped_storage().data_ptr() != storage or weight.storage_offset() != place:
            return False
        place += weight.numel()
    return all(weight.is_contiguous() for weight in weights)


def _join_biases(layers: Sequence[nn.Linear]) -> Tensor | None:
    biases = [layer.bias for layer in layers if layer.bias is not None]
    if not biases:
        return None
    assert len(biases) == len(layers)  # the family has all or none
    return torch.cat([bias.data for bias in biases])
