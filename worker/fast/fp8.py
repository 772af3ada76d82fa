"""The frozen base in 8-bit floats: matmuls at twice the rate, with the adapters beside them in 16 bits.

Weights are quantized once, from their 4 bits, a scale a row; inputs and gradients at every pass, a scale a token
(e4m3). The forward pass and the backward pass sum over different sides of a weight, so there are two copies of each.
See docs/decisions/0025-the-base-in-8-bits.md.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from worker.fast import ops
from worker.fast.lora import Group


@dataclass(frozen=True)
class _Kept:
    """A group's weights by rows and by columns, each with its scales, and every B [out, extra] in the compute type."""

    by_out: tuple[Tensor, Tensor]
    by_in: tuple[Tensor, Tensor]
    b: Tensor


class Fp8Weights:
    """As ``worker.fast.lora.Weights``, with the base weights in 8 bits, kept for all groups."""

    def __init__(self) -> None:
        self._kept: dict[int, _Kept] = {}

    def keep(self, groups: list[Group]) -> None:
        """As there."""
        for group in groups:
            self._of(group)

    def forward(self, group: Group, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """As there."""
        group.fill_inner(x)
        kept = self._of(group)
        out = ops.scaled_mm(*ops.quantize_rows(x[:, : group.in_features]), *kept.by_out)
        more = group.with_bias(residual)
        if more is not None:
            more = more.expand_as(out)
        return ops.add_product(out, x[:, group.in_features :], kept.b, more, out)

    def at_input(self, group: Group, grad: Tensor, *, apart: bool = False) -> tuple[Tensor, Tensor]:
        """As there."""
        kept = self._of(group)
        if apart:
            return ops.scaled_mm(*ops.quantize_rows(grad), *kept.by_in), torch.mm(grad, kept.b)
        both = group.input(len(grad))
        x, inner = both[:, : group.in_features], both[:, group.in_features :]
        torch.mm(grad, kept.b, out=inner)
        alone = ops.scaled_mm(*ops.quantize_rows(grad), *kept.by_in)
        return ops.add_product(alone, inner, group.inner.t(), None, x), inner

    def at_inner(self, group: Group, grad: Tensor) -> Tensor:
        """As there."""
        return torch.mm(grad, self._of(group).b)

    def _of(self, group: Group) -> _Kept:
        if id(group) not in self._kept:
            whole = group.fill(group.inner.new_zeros(group.shape))
            weights, b = whole[:, : group.in_features], whole[:, group.in_features :].clone()
            by_out, by_in = ops.quantize_rows(weights), ops.quantize_rows(weights.t().contiguous())
            group.keep_in(b, 0)
            self._kept[id(group)] = _Kept(by_out, by_in, b)
        return self._kept[id(group)]
