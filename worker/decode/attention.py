"""Attention of one new token a row to what its slot of the cache holds."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

#: Keys that a program of the kernel reads at once.
_BLOCK = 64


def attend_to_cache(q: Tensor, keys: Tensor, values: Tensor, slots: Tensor, positions: Tensor, longest: int) -> Tensor:
    """Attention of ``q`` [rows, heads, head] to the places up to each row's own position; [rows, heads, head].

    ``keys`` and ``values`` are [slots, key heads, places, head]; ``slots`` and ``positions`` [rows] say where each row
    lies and which place is its newest. ``longest`` bounds the positions on the processor; a GPU reads them itself, so
    that a captured graph holds for every length.
    """
    if q.is_cuda:
        return _by_kernel(q, keys, values, slots, positions)
    used = longest + 1
    mask = torch.arange(used, device=q.device)[None, :] <= positions[:, None]
    k, v = keys[slots, :, :used], values[slots, :, :used]
    return scaled_dot_product_attention(q[:, :, None], k, v, mask[:, None, None], enable_gqa=True)[:, :, 0]


def _by_kernel(q: Tensor, keys: Tensor, values: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
    from worker.decode import kernels  # noqa: PLC0415 - Triton is there on GPU machines only

    rows, heads, head = q.shape
    out = torch.empty_like(q)
    kernels.attend_to_cache[(rows, heads)](
        *(q, q.stride(0), keys, values, keys.stride(0), keys.stride(1), slots, positions, out, out.stride(0)),
        *(heads // keys.shape[1], head**-0.5),
        HEAD=head,
        BLOCK=_BLOCK,
        num_warps=4,
    )
    return out
