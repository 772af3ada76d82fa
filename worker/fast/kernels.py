"""Triton kernels for what lies between the matmuls. Each computes in float32 and rounds once, to its output's type.

``worker.fast.ops`` is their only caller and says what each is for; ``worker.fast.reference`` computes the same in plain
torch. Rows of inputs and outputs may be strided; elements of a row lie side by side.
"""

# Triton's language has no types for mypy, and its kernels are written in capitals and short names.
# mypy: ignore-errors
# ruff: noqa: N803, D103, ANN001, ANN201

import triton
import triton.language as tl


@triton.jit
def rms_norm_forward(x, x_stride, weight, out, out_stride, scale, width, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    mask = cols < width
    v = tl.load(x + row * x_stride + cols, mask, 0.0).to(tl.float32)
    w = tl.load(weight + cols, mask, 0.0).to(tl.float32)
    r = 1.0 / tl.sqrt(tl.sum(v * v, 0) / width + eps)
    tl.store(scale + row, r)
    tl.store(out + row * out_stride + cols, v * r * w, mask)


@triton.jit
def rms_norm_backward(
    grad, grad_stride, x, x_stride, weight, scale, residual, residual_stride, out, out_stride, width,
    inner, inner_stride, factors, scaled, extra,
    RESIDUAL: tl.constexpr, EXTRA: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Beside it, the row of ``inner`` times the row's scale and ``factors``."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    mask = cols < width
    g = tl.load(grad + row * grad_stride + cols, mask, 0.0).to(tl.float32)
    v = tl.load(x + row * x_stride + cols, mask, 0.0).to(tl.float32)
    w = tl.load(weight + cols, mask, 0.0).to(tl.float32)
    r = tl.load(scale + row)
    g = g * w
    v = v * r
    c = tl.sum(g * v, 0) / width
    y = (g - v * c) * r
    if RESIDUAL:
        y += tl.load(residual + row * residual_stride + cols, mask, 0.0).to(tl.float32)
    tl.store(out + row * out_stride + cols, y, mask)
    if EXTRA > 0:
        col = tl.arange(0, EXTRA)
        inside = col < extra
        value = tl.load(inner + row * inner_stride + col, inside, 0.0).to(tl.float32)
        value = value * r * tl.load(factors + col, inside, 0.0)
        tl.store(scaled + row * extra + col, value, inside)


@triton.jit
def rotate(
    source, source_stride, out, out_stride, cos, sin, table_stride, heads, sign, HALF: tl.constexpr, HEADS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, HEADS)[:, None]
    col = tl.arange(0, HALF)[None, :]
    mask = (head < heads) & (col >= 0)
    c = tl.load(cos + row * table_stride + col).to(tl.float32)
    s = tl.load(sin + row * table_stride + col).to(tl.float32) * sign
    place = head * (2 * HALF) + col
    a = tl.load(source + row * source_stride + place, mask, 0.0).to(tl.float32)
    b = tl.load(source + row * source_stride + place + HALF, mask, 0.0).to(tl.float32)
    tl.store(out + row * out_stride + place, a * c - b * s, mask)
    tl.store(out + row * out_stride + place + HALF, b * c + a * s, mask)


@triton.jit
def swiglu_forward(gate_up, gate_up_stride, out, out_stride, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < width
    g = tl.load(gate_up + row * gate_up_stride + cols, mask, 0.0).to(tl.float32)
    u = tl.load(gate_up + row * gate_up_stride + width + cols, mask, 0.0).to(tl.float32)
    tl.store(out + row * out_stride + cols, g * tl.sigmoid(g) * u, mask)


# One kernel for all row counts, multiples of 16 or not: compiling another one in mid-training takes a second.
@triton.jit(do_not_specialize=["rows"])
def swiglu_backward(
    grad, grad_stride, gate_up, gate_up_stride, inner, inner_stride, a, partial, rows, width,
    RANK: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A program takes some columns of ``CHUNK`` rows; ``partial`` [programs, RANK, width] is its inner^T @ product.

    ``grad`` lacks inner @ ``a`` [RANK, width].
    """
    cols = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = cols < width
    if RANK > 0:
        rank = tl.arange(0, RANK)
        total = tl.zeros((RANK, COLUMNS), dtype=tl.float32)
        right = tl.load(a + rank[:, None] * width + cols[None, :], inside[None, :], 0.0)
    for first in range(0, CHUNK, ROWS):
        row = (tl.program_id(1) * CHUNK + first + tl.arange(0, ROWS)).to(tl.int64)
        mask = (row < rows)[:, None] & inside[None, :]
        d = tl.load(grad + row[:, None] * grad_stride + cols[None, :], mask, 0.0).to(tl.float32)
        if RANK > 0:
            left = tl.load(inner + row[:, None] * inner_stride + rank[None, :], (row < rows)[:, None], 0.0)
            d += tl.dot(left, right, input_precision="ieee")
        at = gate_up + row[:, None] * gate_up_stride + cols[None, :]
        g = tl.load(at, mask, 0.0).to(tl.float32)
        u = tl.load(at + width, mask, 0.0).to(tl.float32)
        s = tl.sigmoid(g)
        tl.store(at, d * u * s * (1.0 + g * (1.0 - s)), mask)
        tl.store(at + width, d * g * s, mask)
        if RANK > 0:
            total += tl.dot(tl.trans(left), (g * s * u).to(left.dtype), input_precision="ieee")
    if RANK > 0:
        start = partial + (tl.program_id(1) * RANK + rank[:, None]).to(tl.int64) * width
        tl.store(start + cols[None, :], total, inside[None, :])


@triton.jit
def dequantize(
    packed, absmax, code, absmax_code, absmax_scale, absmax_offset, out, out_stride, blocks, in_features, programs,
    adapter, adapter_stride, rows, rank, column, NESTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Base weights by the first ``programs`` programs, the adapter's columns by the others.

    64 weights share an absmax; with double quantization 256 of these share a scale.
    """
    program = tl.program_id(0)
    if program < programs:
        block = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK).to(tl.int64)
        mask = block < blocks
        if NESTED:
            index = tl.load(absmax + block, mask, 0).to(tl.int32)
            scale = tl.load(absmax_code + index) * tl.load(absmax_scale + block // 256, mask, 0.0)
            scale += tl.load(absmax_offset)
        else:
            scale = tl.load(absmax + block, mask, 0.0)
        byte = tl.load(packed + block[:, None] * 32 + tl.arange(0, 32)[None, :], mask[:, None], 0).to(tl.int32)
        high = tl.load(code + (byte >> 4)) * scale[:, None]
        low = tl.load(code + (byte & 15)) * scale[:, None]
        first = block * 64
        row, col = first // in_features, first % in_features
        at = out + (row * out_stride + col)[:, None] + tl.arange(0, 64)[None, :]
        tl.store(at, tl.interleave(high, low), mask[:, None])
    else:
        number = (program - programs) * (BLOCK * 64) + tl.arange(0, BLOCK * 64)
        inside = number < rows * rank
        its_row, its_col = (number // rank).to(tl.int64), number % rank
        value = tl.load(adapter + its_row * adapter_stride + its_col, inside, 0.0)
        tl.store(out + its_row * out_stride + column + its_col, value, inside)


@triton.jit
def quantize_rows(x, x_stride, out, scale, width, LARGEST: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    top = tl.zeros((BLOCK,), dtype=tl.float32)
    for first in range(0, width, BLOCK):
        v = tl.load(x + row * x_stride + first + cols, first + cols < width, 0.0).to(tl.float32)
        top = tl.maximum(top, tl.abs(v))
    s = tl.maximum(tl.max(top, 0), 1e-12) / LARGEST
    tl.store(scale + row, s)
    for first in range(0, width, BLOCK):
        v = tl.load(x + row * x_stride + first + cols, first + cols < width, 0.0).to(tl.float32)
        tl.store(out + row * width + first + cols, (v / s).to(out.dtype.element_ty), first + cols < width)


@triton.jit(do_not_specialize=["rows"])
def add_product(
    y, y_stride, left, left_stride, right, right_row, right_col, residual, residual_stride, out, out_stride,
    rows, width, RESIDUAL: tl.constexpr, INNER: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """``y`` plus ``left`` [rows, INNER] @ ``right`` [width, INNER]^T, plus ``residual``, to ``out``."""
    cols = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    row = (tl.program_id(1) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for first in range(0, INNER, 64):  # all at once would not fit into shared memory from rank 256 on
        inner = first + tl.arange(0, 64)
        a = tl.load(left + row[:, None] * left_stride + inner[None, :], (row < rows)[:, None], 0.0)
        b = tl.load(right + cols[None, :] * right_row + inner[:, None] * right_col, (cols < width)[None, :], 0.0)
        total = tl.dot(a, b, total, input_precision="ieee")
    mask = (row < rows)[:, None] & (cols < width)[None, :]
    total += tl.load(y + row[:, None] * y_stride + cols[None, :], mask, 0.0).to(tl.float32)
    if RESIDUAL:
        total += tl.load(residual + row[:, None] * residual_stride + cols[None, :], mask, 0.0).to(tl.float32)
    tl.store(out + row[:, None] * out_stride + cols[None, :], total, mask)


@triton.jit
def cross_entropy(logits, stride, labels, losses, hits, width, BLOCK: tl.constexpr):
    """Loss of each row and whether its largest logit is the label's; the row becomes its gradient.

    A row whose label is negative has no loss, no hit and no gradient.
    """
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels + row)
    counts = label >= 0
    start = logits + row * stride
    cols = tl.arange(0, BLOCK)
    top = -float("inf")
    total = 0.0
    for first in range(0, width, BLOCK):
        v = tl.load(start + first + cols, first + cols < width, -float("inf")).to(tl.float32)
        larger = tl.maximum(top, tl.max(v, 0))
        total = total * tl.exp(top - larger) + tl.sum(tl.exp(v - larger), 0)
        top = larger
    right = tl.load(start + label, counts, 0.0).to(tl.float32)
    tl.store(losses + row, tl.where(counts, top + tl.log(total) - right, 0.0))
    tl.store(hits + row, (counts & (right >= top)).to(tl.float32))
    tl.debug_barrier()
    for first in range(0, width, BLOCK):
        mask = first + cols < width
        v = tl.load(start + first + cols, mask, -float("inf")).to(tl.float32)
        p = tl.exp(v - top) / total - tl.where(first + cols == label, 1.0, 0.0)
        tl.store(start + first + cols, tl.where(counts, p, 0.0), mask)
