"""The kernels' arithmetic in plain torch: for processors, and to check the kernels by.

As the kernels, it computes 16-bit inputs in float32.
"""

import torch
from bitsandbytes.functional import QuantState, dequantize_4bit
from torch import Tensor


def _precise(x: Tensor) -> Tensor:
    """``x`` in float32, or as it is in float64."""
    return x if x.dtype == torch.float64 else x.float()


def rms_norm_forward(x: Tensor, weight: Tensor, eps: float, out: Tensor) -> Tensor:
    """As ``ops.rms_norm_forward``."""
    x = _precise(x)
    scale = (x.square().mean(-1) + eps).rsqrt()
    out.copy_(x * scale[:, None] * weight)
    return scale


def rms_norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    residual: Tensor | None,
    inner: Tensor | None,
    factors: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """As ``ops.rms_norm_backward``."""
    weighted, normed = _precise(grad) * weight, x * scale[:, None]
    through = (weighted - normed * (weighted * normed).mean(-1, keepdim=True)) * scale[:, None]
    out = (through if residual is None else residual + through).to(grad.dtype)
    if inner is None or factors is None:
        return out, grad.new_empty(len(grad), 0)
    return out, (inner * scale[:, None] * factors).to(grad.dtype)


def rotate(source: Tensor, out: Tensor, cos: Tensor, sin: Tensor, sign: float) -> None:
    """As ``ops.rotate``."""
    half = cos.shape[-1] // 2
    heads = source.reshape(len(source), -1, 2, half)
    a, b = heads[:, :, 0], heads[:, :, 1]
    c, s = cos[:, None, :half], sin[:, None, :half] * sign
    out.copy_(torch.stack([a * c - b * s, b * c + a * s], 2).flatten(1))


def swiglu_forward(gate_up: Tensor, out: Tensor) -> None:
    """As ``ops.swiglu_forward``."""
    gate, up = _precise(gate_up).chunk(2, -1)
    out.copy_(torch.nn.functional.silu(gate) * up)


def swiglu_backward_(grad: Tensor, gate_up: Tensor, inner: Tensor, a: Tensor) -> Tensor:
    """As ``ops.swiglu_backward_``."""
    gate, up = _precise(gate_up).chunk(2, -1)
    grad = _precise(grad) + _precise(inner) @ _precise(a)
    s = torch.sigmoid(gate)
    total = _precise(inner).t() @ (gate * s * up).to(inner.dtype).to(gate.dtype)
    gate_up.copy_(torch.cat([grad * up * s * (1 + gate * (1 - s)), grad * gate * s], -1))
    return total


def dequantize(packed: Tensor, state: QuantState, out: Tensor, adapter: Tensor | None, column: int) -> None:
    """As ``ops.dequantize``."""
    out[:, : state.shape[1]] = dequantize_4bit(packed, state)
    if adapter is not None:
        out[:, column : column + adapter.shape[1]] = adapter


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """As ``ops.quantize_rows``."""
    x = x.float()
    scale = x.abs().amax(1, keepdim=True).clamp_min(1e-12) / 448
    return (x / scale).to(torch.float8_e4m3fn), scale


def scaled_mm(x: Tensor, x_scale: Tensor, w: Tensor, w_scale: Tensor) -> Tensor:
    """As ``ops.scaled_mm``, in float32."""
    return (x.float() * x_scale) @ (w.float() * w_scale).t()


def add_product(y: Tensor, left: Tensor, right: Tensor, residual: Tensor | None, out: Tensor) -> Tensor:
    """As ``ops.add_product``."""
    if y.dtype in {torch.float32, torch.float64}:
        torch.addmm(y, left, right.t(), out=out)
    else:
        out.copy_(_precise(y) + _precise(left) @ _precise(right).t())
    return out if residual is None else out.add_(residual)


def cross_entropy_(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """As ``ops.cross_entropy_``."""
    precise = _precise(logits)
    counts = labels >= 0
    losses = torch.nn.functional.cross_entropy(precise, labels.clamp(min=0), reduction="none") * counts
    hits = (logits.argmax(-1) == labels).to(losses.dtype)
    gradient = torch.softmax(precise, -1)
    gradient[torch.arange(len(labels), device=labels.device), labels.clamp(min=0)] -= 1
    logits.copy_(gradient * counts[:, None])
    return losses, hits
