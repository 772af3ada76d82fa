"""What lies between the matmuls, by Triton on a GPU and by plain torch elsewhere.

Shapes: ``T`` tokens, ``H`` the model's width, ``I`` the MLP's. Rows may be strided.
"""

import torch
from bitsandbytes.functional import QuantState
from torch import Tensor

from worker.fast import reference

#: Columns of one program: enough for the memory's bandwidth, few enough for registers.
_COLUMNS = 1024
#: Quantization blocks of 64 weights in one program.
_BLOCKS = 64
#: Rows that one pass of SwiGLU's backward program takes up to rank 64 and above, its columns, the rows of all passes.
_ROWS, _TILE, _CHUNK = (64, 32), 64, 512
#: Rows and columns of one program that adds a product.
_ADDED = (64, 128)


def _power_of_2(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _warps(columns: int) -> int:
    return 4 if columns <= 2048 else 8 if columns <= 8192 else 16


def rms_norm_forward(x: Tensor, weight: Tensor, eps: float, out: Tensor) -> Tensor:
    """Write the RMS norm of ``x`` [T, H] times ``weight`` [H] to ``out``; returns each row's scale [T]."""
    if not x.is_cuda:
        return reference.rms_norm_forward(x, weight, eps, out)
    from worker.fast import kernels  # noqa: PLC0415 - Triton is there on GPU machines only

    rows, width = x.shape
    scale = torch.empty(rows, dtype=torch.float32, device=x.device)
    block = _power_of_2(width)
    kernels.rms_norm_forward[(rows,)](
        x, x.stride(0), weight, out, out.stride(0), scale, width, eps, BLOCK=block, num_warps=_warps(block)
    )
    return scale


def rms_norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    residual: Tensor | None,
    inner: Tensor | None = None,
    factors: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradient at the norm's input [T, H] plus ``residual``, the gradient that went past the norm.

    With it, ``inner`` [T, extra] times each row's ``scale`` and each column's ``factors``: as ``x`` stands for its
    norm, short of ``weight``, in the gradient of an adapter's A.
    """
    if not x.is_cuda:
        return reference.rms_norm_backward(grad, x, weight, scale, residual, inner, factors)
    from worker.fast import kernels  # noqa: PLC0415

    rows, width = x.shape
    out = torch.empty(rows, width, dtype=grad.dtype, device=x.device)
    extra = 0 if inner is None else inner.shape[1]
    scaled = torch.empty(rows, extra, dtype=grad.dtype, device=x.device)
    block = _power_of_2(width)
    kernels.rms_norm_backward[(rows,)](
        *(grad, grad.stride(0), x, x.stride(0), weight, scale),
        *((out, 0) if residual is None else (residual, residual.stride(0))),
        *(out, out.stride(0), width),
        *((out, 0, scale) if inner is None else (inner, inner.stride(0), factors)),
        *(scaled, extra),
        RESIDUAL=residual is not None,
        EXTRA=_power_of_2(extra) if extra else 0,
        BLOCK=block,
        num_warps=_warps(block),
    )
    return out, scaled


def rotate(source: Tensor, out: Tensor, cos: Tensor, sin: Tensor, *, back: bool = False) -> None:
    """Rotate heads lying side by side [T, heads * head] by their positions into ``out``, which may be ``source``.

    ``cos`` and ``sin`` are [T, head], as transformers makes them: both halves alike. ``back`` undoes a rotation.
    """
    sign = -1.0 if back else 1.0
    if not source.is_cuda:
        reference.rotate(source, out, cos, sin, sign)
        return
    from worker.fast import kernels  # noqa: PLC0415

    heads = source.shape[1] // cos.shape[-1]
    kernels.rotate[(len(source),)](
        *(source, source.stride(0), out, out.stride(0), cos, sin, cos.stride(0), heads, sign),
        HALF=cos.shape[-1] // 2,
        HEADS=_power_of_2(heads),
        num_warps=4,
    )


def swiglu_forward(gate_up: Tensor, out: Tensor) -> None:
    """Write silu(gate) * up to ``out`` [T, I]; ``gate_up`` is [T, 2 I]."""
    if not gate_up.is_cuda:
        reference.swiglu_forward(gate_up, out)
        return
    from worker.fast import kernels  # noqa: PLC0415

    rows, width = len(gate_up), gate_up.shape[1] // 2
    grid = (rows, -(-width // _COLUMNS))
    kernels.swiglu_forward[grid](gate_up, gate_up.stride(0), out, out.stride(0), width, BLOCK=_COLUMNS, num_warps=4)


def swiglu_backward_(grad: Tensor, gate_up: Tensor, inner: Tensor, a: Tensor) -> Tensor:
    """Turn ``gate_up`` [T, 2 I] into its gradient, for ``grad`` + ``inner`` @ ``a`` at the product silu(gate) * up.

    Returns ``inner``^T @ product [r, I] in float32: the product itself never exists as a whole. ``inner`` is [T, r],
    ``a`` [r, I].
    """
    if not gate_up.is_cuda:
        return reference.swiglu_backward_(grad, gate_up, inner, a)
    from worker.fast import kernels  # noqa: PLC0415

    rows, width, extra = len(gate_up), gate_up.shape[1] // 2, inner.shape[1]
    rank = max(16, _power_of_2(extra)) if extra else 0
    if rank != extra:
        raise ValueError(f"{extra} columns; a power of 2 from 16 on is needed")
    chunks = -(-rows // _CHUNK)
    partial = torch.empty(chunks, rank, width, dtype=torch.float32, device=grad.device)
    kernels.swiglu_backward[(-(-width // _TILE), chunks)](
        *(grad, grad.stride(0), gate_up, gate_up.stride(0), inner, inner.stride(0), a, partial, rows, width),
        RANK=rank,
        CHUNK=_CHUNK,
        ROWS=_ROWS[rank > 64],
        COLUMNS=_TILE,
        num_warps=4,
        num_stages=2,
    )
    return partial.sum(0)


def dequantize(packed: Tensor, state: QuantState, out: Tensor, adapter: Tensor | None = None, column: int = 0) -> None:
    """Write 4-bit weights to the first columns of ``out`` [out, …], and ``adapter`` [out, r] from ``column`` on.

    In ``out``'s type. Blocks of 64 weights must not cross rows; ``adapter`` may be columns of a wider tensor.
    """
    if not packed.is_cuda:
        reference.dequantize(packed, state, out, adapter, column)
        return
    from worker.fast import kernels  # noqa: PLC0415

    rows, in_features = state.shape
    blocks = rows * in_features // 64
    nested = bool(state.nested)
    more_columns = out[:, :0] if adapter is None else adapter
    rank = more_columns.shape[1]
    programs, more = -(-blocks // _BLOCKS), -(-rows * rank // (_BLOCKS * 64))
    kernels.dequantize[(programs + more,)](
        *(packed, state.absmax, state.code),
        *((state.state2.code, state.state2.absmax, state.offset) if nested else (state.absmax,) * 3),
        *(out, out.stride(0), blocks, in_features, programs),
        *(more_columns, more_columns.stride(0), rows, rank, column),
        NESTED=nested,
        BLOCK=_BLOCKS,
        num_warps=4,
    )


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """``x`` [T, K] in 8-bit floats (e4m3) [T, K], with each row's scale [T, 1] in float32: its largest becomes 448."""
    if not x.is_cuda:
        return reference.quantize_rows(x)
    from worker.fast import kernels  # noqa: PLC0415

    rows, width = x.shape
    out = torch.empty(rows, width, dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty(rows, 1, dtype=torch.float32, device=x.device)
    block = min(4096, _power_of_2(width))
    kernels.quantize_rows[(rows,)](x, x.stride(0), out, scale, width, LARGEST=448.0, BLOCK=block, num_warps=8)
    return out, scale


def scaled_mm(x: Tensor, x_scale: Tensor, w: Tensor, w_scale: Tensor) -> Tensor:
    """``x`` [T, K] @ ``w`` [N, K]^T, both from ``quantize_rows``, to bfloat16 [T, N]."""
    if not x.is_cuda:
        return reference.scaled_mm(x, x_scale, w, w_scale)
    return torch._scaled_mm(
        x, w.t(), scale_a=x_scale, scale_b=w_scale.t(), out_dtype=torch.bfloat16, use_fast_accum=True
    )


def add_product(y: Tensor, left: Tensor, right: Tensor, residual: Tensor | None, out: Tensor) -> Tensor:
    """Write ``y`` [T, N] + ``left`` [T, r] @ ``right`` [N, r]^T + ``residual`` [T, N] to ``out``, which may be ``y``.

    r is a multiple of 64, or 0.
    """
    if not y.is_cuda:
        return reference.add_product(y, left, right, residual, out)
    if not left.shape[1]:
        return torch.add(y, residual, out=out) if residual is not None else out.copy_(y)
    from worker.fast import kernels  # noqa: PLC0415

    rows, width = y.shape
    kernels.add_product[(-(-width // _ADDED[1]), -(-rows // _ADDED[0]))](
        *(y, y.stride(0), left, left.stride(0), right, right.stride(0), right.stride(1)),
        *((y, 0) if residual is None else (residual, residual.stride(0))),
        *(out, out.stride(0), rows, width),
        RESIDUAL=residual is not None,
        INNER=left.shape[1],
        ROWS=_ADDED[0],
        COLUMNS=_ADDED[1],
        num_warps=4,
    )
    return out


def cross_entropy_(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Losses [T] and hits [T] (1 where the largest logit is the label's); ``logits`` [T, V] becomes their gradient.

    A row whose label is negative counts for nothing.
    """
    if not logits.is_cuda:
        return reference.cross_entropy_(logits, labels)
    from worker.fast import kernels  # noqa: PLC0415

    rows, width = logits.shape
    losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
    hits = torch.empty_like(losses)
    kernels.cross_entropy[(rows,)](
        logits, logits.stride(0), labels, losses, hits, width, BLOCK=min(8192, _power_of_2(width)), num_warps=8
    )
    return losses, hits
