"""A Llama block: attention and MLP around two norms, with the backward pass written out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from worker.fast import ops
from worker.fast.attention import Row, attend
from worker.fast.lora import Group, Weights

#: What a block keeps for its backward pass: all that is dear, that without the MLP's 2 I values a token, or its input.
Keep = Literal["all", "attention", "input"]


@dataclass
class Saved:
    """What a forward pass leaves for the backward pass. ``attention`` has its own small graph, from q, k, v to out."""

    x: Tensor
    scale_1: Tensor
    hidden_qkv: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    attention: Tensor
    hidden_o: Tensor
    middle: Tensor
    scale_2: Tensor | None = None
    gate_up: Tensor | None = None
    hidden_gate_up: Tensor | None = None


class Block:
    """The fast twin of a decoder layer; it holds references to that layer's weights and adapters."""

    def __init__(self, layer: nn.Module, weights: Weights, *, window: int | None, dtype: torch.dtype) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._norm_1: Any = layer.input_layernorm
        self._norm_2: Any = layer.post_attention_layernorm
        self.qkv = Group("qkv", [attention.q_proj, attention.k_proj, attention.v_proj], dtype)  # type: ignore
        self.o = Group("o", [attention.o_proj], dtype)  # type: ignore
        self.gate_up = Group("gate_up", [mlp.gate_proj, mlp.up_proj], dtype)  # type: ignore
        self.down = Group("down", [mlp.down_proj], dtype)  # type: ignore
        self.groups = [self.qkv, self.o, self.gate_up, self.down]
        self.parameters = [p for group in self.groups for p in group.parameters]
        self._weights, self._window = weights, window
        self._head = int(attention.head_dim)  # type: ignore
        self.keep: Keep = "all"

    # --- Forward ------------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, row: Row) -> tuple[Tensor, Saved]:
        """``x`` [T, H] to the block's output [T, H], and what the backward pass needs of it."""
        saved = self.again(x, cos, sin, row)
        assert saved.gate_up is not None
        return self._down(saved, saved.gate_up), saved

    def again(self, x: Tensor, cos: Tensor, sin: Tensor, row: Row) -> Saved:
        """What the backward pass needs; the block's output is not part of it."""
        saved = self._attention(x, cos, sin, row)
        self._gate_up(saved)
        return saved

    def _attention(self, x: Tensor, cos: Tensor, sin: Tensor, row: Row) -> Saved:
        normed, scale_1 = self._norm(self._norm_1, x, self.qkv)
        qkv = self.qkv.forward(normed, self._weights.of(self.qkv))
        hidden_qkv = _hidden(normed, self.qkv)
        del normed
        rotated = qkv[:, : self.qkv.outs[0] + self.qkv.outs[1]]
        ops.rotate(rotated, rotated, cos, sin)
        with torch.enable_grad():
            q, k, v = (
                part.view(len(x), -1, self._head).detach().requires_grad_()
                for part in torch.split(qkv, self.qkv.outs, 1)
            )
            attended = attend(q, k, v, row, self._window)
        inside = self.o.input(len(x))
        inside[:, : self.o.in_features].view(len(x), -1, self._head).copy_(attended.detach())
        middle = self.o.forward(inside, self._weights.of(self.o), residual=x)
        hidden_o = _hidden(inside, self.o)
        del inside
        return Saved(x, scale_1, hidden_qkv, q, k, v, attended, hidden_o, middle)

    def _gate_up(self, saved: Saved) -> Tensor:
        normed, saved.scale_2 = self._norm(self._norm_2, saved.middle, self.gate_up)
        saved.gate_up = self.gate_up.forward(normed, self._weights.of(self.gate_up))
        saved.hidden_gate_up = _hidden(normed, self.gate_up)
        return saved.gate_up

    def _down(self, saved: Saved, gate_up: Tensor) -> Tensor:
        product = self.down.input(len(gate_up))
        ops.swiglu_forward(gate_up, product[:, : self.down.in_features])
        return self.down.forward(product, self._weights.of(self.down), residual=saved.middle)

    def _norm(self, norm: Any, x: Tensor, group: Group) -> tuple[Tensor, Tensor]:
        room = group.input(len(x))
        scale = ops.rms_norm_forward(x, norm.weight, norm.variance_epsilon, room[:, : group.in_features])
        return room, scale

    # --- Backward -----------------------------------------------------------------------------------------------------

    def backward(self, grad: Tensor, saved: Saved, cos: Tensor, sin: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Gradients at the block's input [T, H] and of its adapters, in the order of ``parameters``."""
        if saved.gate_up is None:
            self._gate_up(saved)
        assert saved.gate_up is not None
        assert saved.hidden_gate_up is not None
        assert saved.scale_2 is not None

        # Down and SwiGLU. The product is computed once more, for the adapter's own gradient.
        at_product, at_inner = self.down.at_input(grad, self._weights.of(self.down))
        product = at_product.new_empty(at_product.shape)
        ops.swiglu_backward_(at_product, saved.gate_up, product)
        of_down = self.down.of_adapters(grad, at_inner, product, product @ self.down.inner.t())
        del at_product, at_inner, product

        # Gate and up, and the norm before them.
        normed = torch.empty_like(saved.middle)
        ops.rms_norm_forward(saved.middle, self._norm_2.weight, self._norm_2.variance_epsilon, normed)
        at_normed, at_inner = self.gate_up.at_input(saved.gate_up, self._weights.of(self.gate_up))
        of_gate_up = self.gate_up.of_adapters(saved.gate_up, at_inner, normed, saved.hidden_gate_up)
        saved.gate_up = None
        grad = ops.rms_norm_backward(at_normed, saved.middle, self._norm_2.weight, saved.scale_2, grad)
        del at_normed, at_inner

        # Output projection and attention.
        at_attended, at_inner = self.o.at_input(grad, self._weights.of(self.o))
        of_o = self.o.of_adapters(grad, at_inner, saved.attention.detach().flatten(1), saved.hidden_o)
        at_qkv = self._through_attention(at_attended, saved, cos, sin)
        del at_attended, at_inner

        # q, k and v, and the norm before them.
        ops.rms_norm_forward(saved.x, self._norm_1.weight, self._norm_1.variance_epsilon, normed)
        at_normed, at_inner = self.qkv.at_input(at_qkv, self._weights.of(self.qkv))
        of_qkv = self.qkv.of_adapters(at_qkv, at_inner, normed, saved.hidden_qkv)
        del at_qkv, normed
        grad = ops.rms_norm_backward(at_normed, saved.x, self._norm_1.weight, saved.scale_1, grad)
        return grad, [*of_qkv, *of_o, *of_gate_up, *of_down]

    def _through_attention(self, grad: Tensor, saved: Saved, cos: Tensor, sin: Tensor) -> Tensor:
        """Gradient at q, k and v side by side [T, …], before their rotation."""
        at_q, at_k, at_v = torch.autograd.grad(
            saved.attention, (saved.q, saved.k, saved.v), grad.view(len(grad), -1, self._head)
        )
        out = grad.new_empty(len(grad), self.qkv.out_features)
        q, k, v = torch.split(out, self.qkv.outs, 1)
        ops.rotate(at_q.flatten(1), q, cos, sin, back=True)
        ops.rotate(at_k.flatten(1), k, cos, sin, back=True)
        v.copy_(at_v.flatten(1))
        return out


def _hidden(x: Tensor, group: Group) -> Tensor:
    """The adapters' columns, copied, so that the rest of the row can go."""
    return x[:, group.in_features :].clone()


class BlockFunction(torch.autograd.Function):
    """A block as one node of autograd's graph; ``parameters`` are there for autograd to see."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, row: Row, block: Block, *parameters: Tensor) -> Tensor:
        """Run the block, and keep what it is told to keep."""
        out, saved = block.forward(x, cos, sin, row)
        ctx.block, ctx.row, ctx.cos, ctx.sin = block, row, cos, sin
        if block.keep == "attention":
            saved.gate_up = saved.hidden_gate_up = None
        ctx.saved = x if block.keep == "input" else saved
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of every argument of ``forward``; None where there is none."""
        block, saved = ctx.block, ctx.saved
        ctx.saved = None
        with torch.no_grad(), torch.autocast(grads[0].device.type, enabled=False):
            if isinstance(saved, Tensor):
                saved = block.again(saved, ctx.cos, ctx.sin, ctx.row)
            grad, of_parameters = block.backward(grads[0].contiguous(), saved, ctx.cos, ctx.sin)
        return (grad if ctx.needs_input_grad[0] else None, None, None, None, None, *of_parameters)


def run_block(x: Tensor, cos: Tensor, sin: Tensor, row: Row, block: Block, parameters: Sequence[Tensor]) -> Tensor:
    """``x`` [1, T, H] through the block; cos and sin are [1, T, head]."""
    with torch.autocast(x.device.type, enabled=False):
        out: Tensor = BlockFunction.apply(  # type: ignore[no-untyped-call]
            x[0], cos[0], sin[0], row, block, *parameters
        )
    return out.unsqueeze(0)
