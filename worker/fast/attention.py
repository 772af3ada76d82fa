"""Causal attention within each sample of a row that holds many."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from worker.fast import cudnn


@dataclass(frozen=True)
class Row:
    """Where the samples of a row lie: ``bounds`` [samples + 1] int32 on the device, ``lengths`` on the host.

    No sample is longer than ``longest``. Samples may be empty.
    """

    bounds: Tensor
    lengths: list[int]
    longest: int
    #: What cuDNN wants to know of it, by the plan that asked.
    _ragged: dict[cudnn.Shape, cudnn.Ragged] = field(default_factory=dict)

    def ragged(self, shape: cudnn.Shape) -> cudnn.Ragged:
        """Where the samples lie in the tensors of a plan, worked out once for all layers."""
        if shape not in self._ragged:
            self._ragged[shape] = cudnn.ragged(self.bounds, shape)
        return self._ragged[shape]


@dataclass(frozen=True)
class Attended:
    """Attention's output [T, heads, head] and what its backward pass needs.

    ``stats`` are cuDNN's; without them ``out`` has a small graph of autograd's, from q, k, v to it.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    stats: Tensor | None


def forward(q: Tensor, k: Tensor, v: Tensor, out: Tensor, row: Row, window: int | None) -> Attended:
    """Attention as ``attend`` has it, written to ``out`` [T, heads, head]. q, k and v lie in rows of one width."""
    # Where heads share keys, cuDNN's backward pass is no faster (1.05 ms against 1.08, H100, 13,312 tokens), and takes
    # some 90 kB of scratch memory for each token of the longest sample times the samples.
    own_keys = q.shape[1] == k.shape[1]
    if q.is_cuda and own_keys and q.dtype == torch.bfloat16 and q.shape[2] in {64, 128} and cudnn.available(q.device):
        shape = cudnn.shape_of(q, out, len(row.lengths), row.longest, window)
        return Attended(q, k, v, out, cudnn.forward(q, k, v, out, row.ragged(shape), shape))
    with torch.enable_grad():
        q, k, v = (part.detach().requires_grad_() for part in (q, k, v))
        attended = attend(q, k, v, row, window)
    out.copy_(attended.detach())
    return Attended(q, k, v, attended, None)


def backward(
    grad: Tensor, of: Attended, room: tuple[Tensor, Tensor, Tensor], row: Row, window: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients at q, k and v for ``grad`` at the output: in ``room``, which lies as q, k and v do, or elsewhere."""
    if of.stats is None:
        at_q, at_k, at_v = torch.autograd.grad(of.out, (of.q, of.k, of.v), grad)
        return at_q, at_k, at_v
    shape = cudnn.shape_of(of.q, of.out, len(row.lengths), row.longest, window)
    cudnn.backward(grad, (of.q, of.k, of.v), of.out, of.stats, room, row.ragged(shape), shape)
    return room


def attend(q: Tensor, k: Tensor, v: Tensor, row: Row, window: int | None) -> Tensor:
    """Attention of ``q`` [T, heads, head] on ``k`` and ``v`` [T, key heads, head], within samples and ``window``."""
    window = window if window is not None and window < row.longest else None
    if q.is_cuda:
        return _varlen()(q, k, v, row.bounds, row.longest, window)
    return _by_sample(q, k, v, row, window)


def _by_sample(q: Tensor, k: Tensor, v: Tensor, row: Row, window: int | None) -> Tensor:
    parts, first = [], 0
    for length in filter(None, row.lengths):
        one_q, one_k, one_v = (x[None, first : first + length].transpose(1, 2) for x in (q, k, v))
        mask = None if window is None else _band(length, window, q.device)
        parts.append(scaled_dot_product_attention(one_q, one_k, one_v, mask, is_causal=mask is None, enable_gqa=True))
        first += length
    return torch.cat(parts, 2).transpose(1, 2)[0]


def _band(length: int, window: int, device: torch.device) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool, device=device).tril().triu(1 - window)


def _varlen() -> Callable[[Tensor, Tensor, Tensor, Tensor, int, int | None], Tensor]:
    """Torch's variable-length attention, whose causal switch became a window between versions 2.11 and 2.13."""
    from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415 - needs a CUDA build

    known = inspect.signature(varlen_attn).parameters
    windows, grouped = "window_size" in known, "enable_gqa" in known

    def attend(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, longest: int, window: int | None) -> Tensor:
        if window is not None and not windows:
            raise NotImplementedError("this torch has no sliding window for variable lengths")
        options: dict[str, Any] = {"is_causal": True}
        if windows:
            options = {"window_size": (-1 if window is None else window - 1, 0)}
        if grouped and q.shape[1] != k.shape[1]:
            options["enable_gqa"] = True
        out = varlen_attn(q, k, v, bounds, bounds, longest, longest, **options)
        assert isinstance(out, Tensor)
        return out

    return attend
