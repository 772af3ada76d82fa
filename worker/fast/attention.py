"""Causal attention within each sample of a row that holds many."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


@dataclass(frozen=True)
class Row:
    """Where the samples of a row lie: ``bounds`` [samples + 1] int32 on the device, ``lengths`` on the host."""

    bounds: Tensor
    lengths: list[int]


def attend(q: Tensor, k: Tensor, v: Tensor, row: Row, window: int | None) -> Tensor:
    """Attention of ``q`` [T, heads, head] on ``k`` and ``v`` [T, key heads, head], within samples and ``window``."""
    longest = max(row.lengths)
    window = window if window is not None and window < longest else None
    if q.is_cuda:
        return _varlen()(q, k, v, row.bounds, longest, window)
    return _by_sample(q, k, v, row, window)


def _by_sample(q: Tensor, k: Tensor, v: Tensor, row: Row, window: int | None) -> Tensor:
    parts, first = [], 0
    for length in row.lengths:
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
