"""Triton kernels of the decoder; ``worker.decode.attention`` is their only caller."""

# Triton's language has no types for mypy, and its kernels are written in capitals and short names.
# mypy: ignore-errors
# ruff: noqa: N803, ANN001, ANN201

import triton
import triton.language as tl


@triton.jit
def put(
    q, k, v, stride, cos, sin, table_stride, keys, values, slot_stride, head_stride, slots, places, heads, key_heads,
    HALF: tl.constexpr, HEADS: tl.constexpr, KEY_HEADS: tl.constexpr,
):  # fmt: skip
    """One program a row: queries and keys rotated in place, keys and values copied to the row's place."""
    row = tl.program_id(0).to(tl.int64)
    col = tl.arange(0, HALF)[None, :]
    c = tl.load(cos + row * table_stride + col).to(tl.float32)
    s = tl.load(sin + row * table_stride + col).to(tl.float32)
    head = tl.arange(0, HEADS)[:, None]
    at = q + row * stride + head * (2 * HALF) + col
    mask = (head < heads) & (col >= 0)
    a = tl.load(at, mask, 0.0).to(tl.float32)
    b = tl.load(at + HALF, mask, 0.0).to(tl.float32)
    tl.store(at, a * c - b * s, mask)
    tl.store(at + HALF, b * c + a * s, mask)

    head = tl.arange(0, KEY_HEADS)[:, None]
    mask = (head < key_heads) & (col >= 0)
    inside = head * (2 * HALF) + col
    to = (
        tl.load(slots + row).to(tl.int64) * slot_stride
        + head * head_stride
        + tl.load(places + row).to(tl.int64) * (2 * HALF)
        + col
    )
    at = k + row * stride + inside
    a = tl.load(at, mask, 0.0).to(tl.float32)
    b = tl.load(at + HALF, mask, 0.0).to(tl.float32)
    first, second = a * c - b * s, b * c + a * s
    tl.store(at, first, mask)
    tl.store(at + HALF, second, mask)
    tl.store(keys + to, first, mask)
    tl.store(keys + to + HALF, second, mask)
    at = v + row * stride + inside
    tl.store(values + to, tl.load(at, mask, 0.0), mask)
    tl.store(values + to + HALF, tl.load(at + HALF, mask, 0.0), mask)


@triton.jit
def attend_to_cache(
    q, q_stride, keys, values, slot_stride, head_stride, slots, places, out, out_stride, group, scale,
    HEAD: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a row and head, each with keys of its own: softmax(q k) v up to the row's place, in float32."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    length = tl.load(places + row).to(tl.int32) + 1
    base = tl.load(slots + row).to(tl.int64) * slot_stride + head * head_stride
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
        v = tl.load(values + place, inside[:, None], 0.0).to(tl.float32)
        score = tl.where(inside, tl.sum(k * x[None, :], 1), -float("inf"))
        larger = tl.maximum(top, tl.max(score, 0))
        fade = tl.exp(top - larger)
        p = tl.exp(score - larger)
        mixed = mixed * fade + tl.sum(p[:, None] * v, 0)
        total = total * fade + tl.sum(p, 0)
        top = larger
    tl.store(out + row * out_stride + head * HEAD + cols, mixed / total)


@triton.jit
def attend_to_cache_in_groups(
    q, q_stride, keys, values, slot_stride, head_stride, slots, places, out, out_stride, group, scale,
    HEAD: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a row and key head, for the ``group`` query heads that share its keys: each is read once."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    length = tl.load(places + row).to(tl.int32) + 1
    base = tl.load(slots + row).to(tl.int64) * slot_stride + head * head_stride
    cols = tl.arange(0, HEAD)
    members = tl.arange(0, GROUP)
    where = (head * group + members[:, None]) * HEAD + cols[None, :]
    mask = (members[:, None] < group) & (cols[None, :] >= 0)
    x = tl.load(q + row * q_stride + where, mask, 0.0)
    top = tl.full([GROUP], -float("inf"), tl.float32)
    total = tl.zeros([GROUP], tl.float32)
    mixed = tl.zeros([GROUP, HEAD], tl.float32)
    for first in range(0, length, BLOCK):
        at = first + tl.arange(0, BLOCK)
        inside = at < length
        place = base + at[:, None] * HEAD + cols[None, :]
        k = tl.load(keys + place, inside[:, None], 0.0)
        v = tl.load(values + place, inside[:, None], 0.0)
        score = tl.dot(x, tl.trans(k), input_precision="ieee") * scale
        score = tl.where(inside[None, :], score, -float("inf"))
        larger = tl.maximum(top, tl.max(score, 1))
        fade = tl.exp(top - larger)
        p = tl.exp(score - larger[:, None])
        mixed = mixed * fade[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        total = total * fade + tl.sum(p, 1)
        top = larger
    tl.store(out + row * out_stride + where, mixed / total[:, None], mask)
