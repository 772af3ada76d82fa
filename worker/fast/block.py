"""A Llama block: attention and MLP around two norms, with the backward pass written out."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from worker.fast import attention, ops
from worker.fast.attention import Attended, Row
from worker.fast.fp8 import Fp8Weights
from worker.fast.lora import Group, Weights

#: What a block keeps for its backward pass: all that is dear, that without the MLP's 2 I values a token, or its input.
Keep = Literal["all", "attention", "input"]


@dataclass
class Saved:
    """What a forward pass leaves for the backward pass."""

    x: Tensor
    scale_1: Tensor
    hidden_qkv: Tensor
    attended: Attended
    hidden_o: Tensor
    middle: Tensor
    #: Queries and keys before their norms [T * heads, head], each with its rows' scales; empty where there are none.
    heads: list[tuple[Tensor, Tensor]]
    scale_2: Tensor | None = None
    gate_up: Tensor | None = None
    hidden_gate_up: Tensor | None = None


@dataclass
class Kept:
    """What of that is kept, by the block's ``keep``, and what it can't recompute. ``rows`` are those of the output."""

    saved: Saved | Tensor
    hidden_down: Tensor
    rows: Tensor | None


class Block:
    """The fast twin of a decoder layer; it holds references to that layer's weights and adapters."""

    def __init__(
        self, layer: nn.Module, weights: Weights | Fp8Weights, *, window: int | None, dtype: torch.dtype
    ) -> None:
        mixer, mlp = layer.self_attn, layer.mlp
        self._norm_1: Any = layer.input_layernorm
        self._norm_2: Any = layer.post_attention_layernorm
        #: Of each head's queries and keys: Qwen3 has them.
        self._head_norms: list[Any] = [mixer.q_norm, mixer.k_norm] if hasattr(mixer, "q_norm") else []  # type: ignore
        self.qkv = Group("qkv", [mixer.q_proj, mixer.k_proj, mixer.v_proj], dtype)  # type: ignore
        self.o = Group("o", [mixer.o_proj], dtype)  # type: ignore
        self.gate_up = Group("gate_up", [mlp.gate_proj, mlp.up_proj], dtype)  # type: ignore
        self.down = Group("down", [mlp.down_proj], dtype)  # type: ignore
        self.groups = [self.qkv, self.o, self.gate_up, self.down]
        self.parameters = [p for group in self.groups for p in group.parameters]
        self.weights, self._window = weights, window
        self._head = int(mixer.head_dim)  # type: ignore
        self.keep: Keep = "all"

    # --- Forward ------------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, row: Row, rows: Tensor | None = None) -> tuple[Tensor, Kept]:
        """``x`` [T, H] to the block's output [T, H], and what is kept for the backward pass.

        With ``rows``, each named once, only these of the output [rows, H]: the others' MLP is spared.
        """
        saved = self._again(x, cos, sin, row, rows)
        out, hidden_down = self._down(saved)
        if self.keep == "attention":
            saved.gate_up = saved.hidden_gate_up = None
        return out, Kept(x if self.keep == "input" else saved, hidden_down, rows)

    def _again(self, x: Tensor, cos: Tensor, sin: Tensor, row: Row, rows: Tensor | None) -> Saved:
        """All that the backward pass needs, but for the adapter's columns of the last layer."""
        saved = self._attention(x, cos, sin, row, rows)
        self._gate_up(saved)
        return saved

    def _attention(self, x: Tensor, cos: Tensor, sin: Tensor, row: Row, rows: Tensor | None) -> Saved:
        normed, scale_1 = self._norm(self._norm_1, x, self.qkv)
        qkv = self.weights.forward(self.qkv, normed)
        hidden_qkv = self.qkv.hidden(normed)
        del normed
        heads = self._rotate(qkv, cos, sin)
        inside = self.o.input(len(x))
        attended = attention.forward(
            *self._heads(qkv), self._by_head(inside[:, : self.o.in_features]), row, self._window
        )
        residual = x
        if rows is not None:
            inside, residual = inside.index_select(0, rows), x.index_select(0, rows)
        middle = self.weights.forward(self.o, inside, residual)
        return Saved(x, scale_1, hidden_qkv, attended, self.o.hidden(inside), middle, heads)

    def _rotate(self, qkv: Tensor, cos: Tensor, sin: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Rotate q and k where they lie, normalized by head where the model does that; returns what the norms read."""
        if not self._head_norms:
            rotated = qkv[:, : self.qkv.outs[0] + self.qkv.outs[1]]
            ops.rotate(rotated, rotated, cos, sin)
        kept = []
        for norm, part in zip(self._head_norms, torch.split(qkv, self.qkv.outs, 1), strict=False):  # not for v
            before = part.clone(memory_format=torch.contiguous_format).view(-1, self._head)
            normed = torch.empty_like(before)
            kept.append((before, ops.rms_norm_forward(before, norm.weight, norm.variance_epsilon, normed)))
            ops.rotate(normed.view(len(qkv), -1), part, cos, sin)
        return kept

    def _gate_up(self, saved: Saved) -> None:
        normed, saved.scale_2 = self._norm(self._norm_2, saved.middle, self.gate_up)
        saved.gate_up = self.weights.forward(self.gate_up, normed)
        saved.hidden_gate_up = self.gate_up.hidden(normed)

    def _down(self, saved: Saved) -> tuple[Tensor, Tensor]:
        assert saved.gate_up is not None
        product = self.down.input(len(saved.gate_up))
        ops.swiglu_forward(saved.gate_up, product[:, : self.down.in_features])
        out = self.weights.forward(self.down, product, saved.middle)
        return out, self.down.hidden(product)

    def _norm(self, norm: Any, x: Tensor, group: Group) -> tuple[Tensor, Tensor]:
        room = group.input(len(x))
        scale = ops.rms_norm_forward(x, norm.weight, norm.variance_epsilon, room[:, : group.in_features])
        return room, scale

    def _heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v [T, heads, head] where they lie side by side [T, …]."""
        q, k, v = (self._by_head(part) for part in torch.split(qkv, self.qkv.outs, 1))
        return q, k, v

    def _by_head(self, x: Tensor) -> Tensor:
        return x.view(len(x), -1, self._head)

    # --- Backward -----------------------------------------------------------------------------------------------------

    def backward(
        self, grad: Tensor, kept: Kept, cos: Tensor, sin: Tensor, row: Row, *, first: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Gradients at the block's input [T, H] and of its adapters, in the order of ``parameters``.

        ``grad`` is that at the output: of all rows, or of those that were asked for.
        Before the ``first`` block there is nothing to train, so its gradient at the input is None.
        """
        rows, saved = kept.rows, kept.saved
        if isinstance(saved, Tensor):
            saved = self._again(saved, cos, sin, row, rows)
        if saved.gate_up is None:
            self._gate_up(saved)
        grad, of_gate_up, of_down = self._through_mlp(grad, saved, kept.hidden_down)

        # Output projection and attention.
        at_attended, at_inner = self.weights.at_input(self.o, grad)
        attended = saved.attended.out.detach().flatten(1)
        of_a = self.o.of_a(at_inner * self.o.factors.to(at_inner.dtype), _only(attended, rows))
        of_o = self.o.gradients(of_a, grad, saved.hidden_o)
        if rows is not None:
            grad = torch.zeros_like(saved.x).index_copy_(0, rows, grad)
            room = self.o.input(len(saved.x))[:, : self.o.in_features].zero_()
            at_attended = room.index_copy_(0, rows, at_attended)
        at_qkv = self._through_attention(at_attended, saved, cos, sin, row)
        del at_attended, at_inner, attended

        # q, k and v, and the norm before them.
        norm = self._norm_1
        if first:
            at_inner = self.weights.at_inner(self.qkv, at_qkv)
            scaled = (at_inner * saved.scale_1[:, None] * self.qkv.factors).to(at_inner.dtype)
            at_x = None
        else:
            at_normed, at_inner = self.weights.at_input(self.qkv, at_qkv)
            at_x, scaled = ops.rms_norm_backward(
                at_normed, saved.x, norm.weight, saved.scale_1, grad, at_inner, self.qkv.factors
            )
        of_a = self.qkv.of_a(scaled, saved.x).mul_(norm.weight)
        of_qkv = self.qkv.gradients(of_a, at_qkv, saved.hidden_qkv)
        return at_x, [*of_qkv, *of_o, *of_gate_up, *of_down]

    def _through_mlp(
        self, grad: Tensor, saved: Saved, hidden_down: Tensor
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Gradients at the MLP's input before its norm [T, H], of gate's and up's adapters, and of down's.

        An adapter's A meets the norm's output x * scale * weight. Its gradient takes x itself, with the scale in the
        other factor and the weight in the product: the norm's output need not be there once more.
        """
        assert saved.gate_up is not None
        assert saved.hidden_gate_up is not None
        assert saved.scale_2 is not None
        at_product, at_inner = self.weights.at_input(self.down, grad, apart=True)
        rank = power_of_2(self.down.rank)
        of_a = ops.swiglu_backward_(at_product, saved.gate_up, at_inner[:, :rank], self.down.inner[:rank])
        of_a = (of_a * self.down.factors[: len(of_a), None]).to(self.down.precise)
        of_down = self.down.gradients(of_a, grad, hidden_down)
        del at_product, at_inner

        at_normed, at_inner = self.weights.at_input(self.gate_up, saved.gate_up)
        norm = self._norm_2
        grad, scaled = ops.rms_norm_backward(
            at_normed, saved.middle, norm.weight, saved.scale_2, grad, at_inner, self.gate_up.factors
        )
        of_a = self.gate_up.of_a(scaled, saved.middle).mul_(norm.weight)
        of_gate_up = self.gate_up.gradients(of_a, saved.gate_up, saved.hidden_gate_up)
        saved.gate_up = None
        return grad, of_gate_up, of_down

    def _through_attention(self, grad: Tensor, saved: Saved, cos: Tensor, sin: Tensor, row: Row) -> Tensor:
        """Gradient at q, k and v side by side [T, …], before their norms and rotation."""
        out = grad.new_empty(len(grad), self.qkv.out_features)
        room = self._heads(out)
        at_q, at_k, at_v = attention.backward(self._by_head(grad), saved.attended, room, row, self._window)
        if at_q is room[0] and not self._head_norms:
            rotated = out[:, : self.qkv.outs[0] + self.qkv.outs[1]]
            ops.rotate(rotated, rotated, cos, sin, back=True)
            return out
        q, k, v = torch.split(out, self.qkv.outs, 1)
        ops.rotate(at_q.flatten(1), q, cos, sin, back=True)
        ops.rotate(at_k.flatten(1), k, cos, sin, back=True)
        if at_v is not room[2]:
            v.copy_(at_v.flatten(1))
        for norm, part, (before, scale) in zip(self._head_norms, (q, k)[: len(saved.heads)], saved.heads, strict=True):
            at_normed = part.reshape(-1, self._head)
            at_before, _ = ops.rms_norm_backward(at_normed, before, norm.weight, scale, None)
            part.copy_(at_before.view(part.shape))
        return out


def _only(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x.index_select(0, rows)


def power_of_2(rank: int) -> int:
    """The columns that SwiGLU's backward kernel takes for a rank: a power of 2 from 16 on, or none."""
    return max(16, 1 << (rank - 1).bit_length()) if rank else 0
