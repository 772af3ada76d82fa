"""Linear layers that read the same input, with their adapters, as one matmul.

The input gets columns for ``scale * x A^T`` and the weights get columns for ``B``: one matmul then computes the layer
and its adapter. Backward, one matmul by the same weights gives the gradient at the input and at these inner columns.
"""

from dataclasses import dataclass

import torch
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn

from worker.fast import ops

#: The extra columns are padded to a multiple of this, to keep the tensor cores' tiles whole.
_ALIGN = 64
_ADAPTER = "default"


def _padded(rank: int) -> int:
    """Extra columns for a rank: a multiple of 64, from 128 on a power of 2."""
    return -(-rank // _ALIGN) * _ALIGN if rank <= 2 * _ALIGN else 1 << (rank - 1).bit_length()


@dataclass(frozen=True)
class Adapter:
    """A layer's A [r, in] and B [out, r] in float32, and where they go: first row, first column, scale."""

    a: nn.Parameter
    b: nn.Parameter
    row: int
    column: int
    scale: float

    @property
    def rank(self) -> int:
        """Of A and B."""
        return len(self.a)


class Group:
    """Layers side by side: q, k and v; gate and up; or one alone. ``name`` tells the groups of a block apart.

    The adapters' copies in the compute type are as new as the last ``refresh``.
    """

    def __init__(self, name: str, layers: list[nn.Module], dtype: torch.dtype) -> None:
        self.name = name
        self._bases: list[nn.Module] = [getattr(layer, "base_layer", layer) for layer in layers]
        self.in_features = int(self._bases[0].in_features)  # type: ignore[arg-type]
        self.outs = [int(base.out_features) for base in self._bases]  # type: ignore[arg-type]
        self.out_features = sum(self.outs)
        self._adapters = _adapters(layers, self.outs)
        self.parameters = [p for one in self._adapters if one is not None for p in (one.a, one.b)]
        self.rank = sum(one.rank for one in self._adapters if one)
        self.extra = _padded(self.rank)
        self.bias = _bias(self._bases, self.outs)
        device = self._bases[0].weight.device
        #: Every ``scale * A`` below each other [extra, in]; the rows beyond the ranks are zero.
        self.inner = torch.zeros(self.extra, self.in_features, dtype=dtype, device=device)  # type: ignore[arg-type]
        #: Each inner column's ``scale``, 0 beyond the ranks [extra].
        self.factors = torch.zeros(self.extra, dtype=torch.promote_types(dtype, torch.float32), device=device)  # type: ignore[arg-type]
        for one in self._adapters:
            if one is not None:
                self.factors[one.column : one.column + one.rank] = one.scale
        self.precise = next((p.dtype for p in self.parameters), dtype)
        self._b = [None if one is None else torch.empty_like(one.b, dtype=dtype) for one in self._adapters]

    @property
    def shape(self) -> tuple[int, int]:
        """Of the weights with the adapters' columns."""
        return self.out_features, self.in_features + self.extra

    def input(self, rows: int) -> Tensor:
        """Room for the input and the adapters' columns [rows, in + extra]."""
        return self.inner.new_empty(rows, self.in_features + self.extra)

    def copies(self) -> list[tuple[Tensor, nn.Parameter, float]]:
        """What ``refresh`` fills: target, source and factor."""
        found: list[tuple[Tensor, nn.Parameter, float]] = []
        for one, b in zip(self._adapters, self._b, strict=True):
            if one is not None and b is not None:
                found.append((self.inner[one.column : one.column + one.rank], one.a, one.scale))
                found.append((b, one.b, 1.0))
        return found

    def fill(self, weights: Tensor) -> Tensor:
        """Write base weights and each B into ``weights`` (``shape``), whose other columns are zero."""
        row = 0
        for base, one, b in zip(self._bases, self._adapters, self._b, strict=True):
            place = weights[row : row + int(base.out_features)]  # type: ignore[arg-type]
            column = self.in_features + (one.column if one else 0)
            if not isinstance(base, Linear4bit):
                place[:, : self.in_features].copy_(base.weight)  # type: ignore[arg-type]
                if b is not None:
                    place[:, column : column + b.shape[1]].copy_(b)
            else:
                ops.dequantize(base.weight.data, base.weight.quant_state, place, b, column)
            row += len(place)
        return weights

    def keep_in(self, weights: Tensor, first: int | None = None) -> None:
        """From now on ``refresh`` writes each B to the columns of ``weights`` from ``first`` on (the input's width)."""
        first = self.in_features if first is None else first
        for number, (one, b) in enumerate(zip(self._adapters, self._b, strict=True)):
            if one is not None and b is not None:
                columns = slice(first + one.column, first + one.column + one.rank)
                self._b[number] = weights[one.row : one.row + len(one.b), columns].copy_(b)

    def with_bias(self, residual: Tensor | None) -> Tensor | None:
        """What is added to the product: the bias [out], the residual [T, out], or both."""
        if residual is None or self.bias is None:
            return self.bias if residual is None else residual
        return residual + self.bias

    def fill_inner(self, x: Tensor) -> None:
        """Fill the adapters' columns of ``x`` [T, in + extra] from the others."""
        if self.extra:
            torch.mm(x[:, : self.in_features], self.inner.t(), out=x[:, self.in_features :])

    def hidden(self, x: Tensor) -> Tensor:
        """The adapters' columns of ``x`` [T, in + extra], copied so that the rest can go: [T, rank]."""
        return x[:, self.in_features : self.in_features + self.rank].clone()

    def of_a(self, at_inner: Tensor, x: Tensor) -> Tensor:
        """Gradients of each A below each other [rank, in], for those at the adapters' columns times ``factors``."""
        return _precise_product(at_inner[:, : self.rank].t(), x, self.precise)

    def gradients(self, of_a: Tensor, grad: Tensor, hidden: Tensor) -> list[Tensor]:
        """Gradients of each A and B, in the order of ``parameters``, for ``grad`` at the output.

        ``of_a`` [rank, in] is every A's; ``hidden`` [T, rank] are the adapters' columns of the forward pass.
        """
        grads = []
        for one in self._adapters:
            if one is not None:
                columns = slice(one.column, one.column + one.rank)
                of_b = _precise_product(grad[:, one.row : one.row + len(one.b)].t(), hidden[:, columns], self.precise)
                grads += [of_a[columns], of_b]
        return grads


def _precise_product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """``a @ b`` in ``dtype``, that of the adapters: on a GPU without rounding to 16 bits in between."""
    if a.dtype == dtype:
        return torch.mm(a, b)
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=dtype)
    return torch.mm(a, b).to(dtype)


def _adapters(layers: list[nn.Module], outs: list[int]) -> list[Adapter | None]:
    found: list[Adapter | None] = []
    row = column = 0
    for layer, out in zip(layers, outs, strict=True):
        one = None
        if hasattr(layer, "lora_A"):
            a, b = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight  # type: ignore[index,union-attr]
            one = Adapter(a, b, row, column, float(layer.scaling[_ADAPTER]))  # type: ignore[index]
            column += one.rank
        found.append(one)
        row += out
    return found


def _bias(bases: list[nn.Module], outs: list[int]) -> Tensor | None:
    biases = [getattr(base, "bias", None) for base in bases]
    given = next((bias for bias in biases if bias is not None), None)
    if given is None:
        return None
    return torch.cat(
        [given.new_zeros(out) if bias is None else bias.detach() for bias, out in zip(biases, outs, strict=True)]
    )


class Weights:
    """Weights of groups in the compute type: one scratch for all blocks, or, ``resident``, kept for each."""

    def __init__(self, *, resident: bool) -> None:
        self._resident = resident
        self._scratch: dict[tuple[str, tuple[int, int]], Tensor] = {}
        self._kept: dict[int, Tensor] = {}

    def keep(self, groups: list[Group]) -> None:
        """Make what is kept of these groups, before any pass.

        Made in a pass it would lie between that pass's tensors and part the memory that they leave behind, so that a
        longer pass finds no room there (of 63 GB in use, 84 were held).
        """
        if self._resident:
            for group in groups:
                self._of(group)

    def forward(self, group: Group, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """``x`` [T, in + extra] with its first columns filled; the rest is filled here. Returns [T, out]."""
        group.fill_inner(x)
        weights = self._of(group)
        more = group.with_bias(residual)
        return torch.mm(x, weights.t()) if more is None else torch.addmm(more, x, weights.t())

    def at_input(self, group: Group, grad: Tensor, *, apart: bool = False) -> tuple[Tensor, Tensor]:
        """Gradients at the input [T, in] and at the adapters' columns [T, extra], for one at the output [T, out].

        Both are columns of one tensor [T, in + extra]. ``apart``: the input's lacks what comes through the columns.
        """
        both = torch.mm(grad, self._of(group))
        x, inner = both[:, : group.in_features], both[:, group.in_features :]
        return x if apart else ops.add_product(x, inner, group.inner.t(), None, x), inner

    def at_inner(self, group: Group, grad: Tensor) -> Tensor:
        """Gradient at the adapters' columns alone [T, extra]."""
        return torch.mm(grad, self._of(group)[:, group.in_features :])

    def _of(self, group: Group) -> Tensor:
        """Without residence they hold until the next call for a group of that name."""
        if self._resident:
            if id(group) not in self._kept:
                self._kept[id(group)] = group.inner.new_zeros(group.shape)
                group.keep_in(group.fill(self._kept[id(group)]))
            return self._kept[id(group)]
        key = (group.name, group.shape)
        if key not in self._scratch:
            self._scratch[key] = group.inner.new_zeros(group.shape)
        return group.fill(self._scratch[key])


@torch.no_grad()
def refresh(groups: list[Group]) -> None:
    """Bring the adapters' copies up to date: once for each forward pass, in a few launches for all of them."""
    copies = [copy for group in groups for copy in group.copies()]
    if copies:
        targets, sources, factors = (list(part) for part in zip(*copies, strict=True))
        torch._foreach_copy_(targets, torch._foreach_mul(sources, factors))
