"""Triton kernel of one token's attention to the cache; ``worker.decode.attention`` is its only caller."""

# Triton's language has no types for mypy, and its kernels are written in capitals and short names.
# mypy: ignore-errors
# ruff: noqa: N803, ANN001, ANN201

import triton
import triton.language as tl


@triton.jit
def attend_to_cache(
    q, q_stride, keys, values, slot_stride, head_stride, slots, positions, out, out_stride, group, scale,
    HEAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a row and query head: softmax(q k) v over places 0 to the row's position, in float32."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    length = tl.load(positions + row).to(tl.int32) + 1
    base = tl.load(slots + row).to(tl.int64) * slot_stride + (head // group) * head_stride
    cols = tl.arange(0, HEAD)
    x = tl.load(q + row * q_stride + head * HEAD + cols).to(tl.float32) * scale
    top = -float("inf")
    total = 0.0
    mixed = tl.zeros([HEAD], tl.float32)
    for first in range(0, length, BLOCK):
        at = first + tl.arange(0, BLOCK)
        inside = at < length
        place = base + at[:, None] * HEAD + cols[None, :]
        k = tl.load(keys + place, inside[:, None], 0.0).to(tl.float32)
        score = tl.where(inside, tl.sum(k * x[None, :], 1), -float("inf"))
        larger = tl.maximum(top, tl.max(score, 0))
        fade = tl.exp(top - larger)
        p = tl.exp(score - larger)
        v = tl.load(values + place, inside[:, None], 0.0).to(tl.float32)
        mixed = mixed * fade + tl.sum(p[:, None] * v, 0)
        total = total * fade + tl.sum(p, 0)
        top = larger
    tl.store(out + row * out_stride + head * HEAD + cols, mixed / total)
