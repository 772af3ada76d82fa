"""A cache of slots, and the attention of one new token a row to what its slot holds."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from worker.fast import ops

#: Keys that a program of the kernel reads at once.
_BLOCK = 64
#: Rows of the smallest tile that tensor cores take: queries that share keys are padded to it.
_TILE = 16


@dataclass(frozen=True)
class Cache:
    """One layer's keys and values [slots, key heads, places, head]."""

    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class Places:
    """Where rows lie in the cache: ``slots`` and ``places`` [rows].

    ``longest`` bounds the places on the processor; a GPU reads them itself, so that a captured graph holds for every
    length.
    """

    slots: Tensor
    places: Tensor
    longest: int


def put(q: Tensor, k: Tensor, v: Tensor, tables: tuple[Tensor, Tensor], at: Places, cache: Cache) -> None:
    """Rotate ``q`` and ``k`` [rows, heads, head] in place, and write keys and values to their places of the cache.

    The three are parts of one tensor, side by side; ``tables`` are cosines and sines [rows, head].
    """
    if not q.is_cuda:
        for rotated in (q, k):
            rotated.copy_(_rotate(rotated, tables))
        cache.keys[at.slots, :, at.places] = k
        cache.values[at.slots, :, at.places] = v
        return
    from worker.decode import kernels  # noqa: PLC0415 - Triton is there on GPU machines only

    rows, heads, head = q.shape
    cos, sin = tables
    kernels.put[(rows,)](
        *(q, k, v, q.stride(0), cos, sin, cos.stride(0)),
        *(cache.keys, cache.values, cache.keys.stride(0), cache.keys.stride(1), at.slots, at.places),
        *(heads, k.shape[1]),
        HALF=head // 2,
        HEADS=_power_of_2(heads),
        KEY_HEADS=_power_of_2(k.shape[1]),
        num_warps=4,
    )


def _rotate(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    flat = x.flatten(1)
    out = torch.empty_like(flat)
    ops.rotate(flat, out, *tables)
    return out.view(x.shape)


def attend_to_cache(q: Tensor, cache: Cache, at: Places) -> Tensor:
    """Attention of ``q`` [rows, heads, head] to the places up to each row's own; [rows, heads, head]."""
    if q.is_cuda:
        return _by_kernel(q, cache, at)
    used = at.longest + 1
    mask = torch.arange(used, device=q.device)[None, :] <= at.places[:, None]
    k, v = cache.keys[at.slots, :, :used], cache.values[at.slots, :, :used]
    return scaled_dot_product_attention(q[:, :, None], k, v, mask[:, None, None], enable_gqa=True)[:, :, 0]


def _by_kernel(q: Tensor, cache: Cache, at: Places) -> Tensor:
    from worker.decode import kernels  # noqa: PLC0415 - Triton is there on GPU machines only

    rows, heads, head = q.shape
    key_heads = cache.keys.shape[1]
    group = heads // key_heads
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    kernel = kernels.attend_to_cache if group == 1 else kernels.attend_to_cache_in_groups
    kernel[(rows, key_heads)](
        *(q, q.stride(0), cache.keys, cache.values, cache.keys.stride(0), cache.keys.stride(1)),
        *(at.slots, at.places, out, out.stride(0), group, head**-0.5),
        HEAD=head,
        GROUP=max(_TILE, _power_of_2(group)),
        BLOCK=_BLOCK,
        num_warps=4,
    )
    return out


def _power_of_2(number: int) -> int:
    return 1 << (number - 1).bit_length()
