"""A causal language model of the Llama family, with its adapters, on the fast path."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from worker.fast import ops
from worker.fast.attention import Row
from worker.fast.block import Block, Keep, Kept
from worker.fast.fp8 import Fp8Weights
from worker.fast.lora import Weights, refresh
from worker.fast.loss import linear_cross_entropy

#: Kinds of models whose blocks are Llama's: two RMS norms, rotary positions, SwiGLU.
_FAMILY = ("llama", "mistral", "qwen2")


def uncovered(model: PeftModel) -> str | None:
    """Why the fast path can't train this model; None when it can."""
    if getattr(model.get_base_model().lm_head, "lora_A", None) is not None:
        return "an adapter on the head is not covered"
    return uncovered_kind(model.get_base_model().config, dropout=model.peft_config["default"].lora_dropout)


def uncovered_kind(config: Any, *, dropout: float = 0.0) -> str | None:
    """Why the fast path can't train models of this configuration with such adapters; None when it can."""
    if config.model_type not in _FAMILY:
        return f"models of kind {config.model_type} are not covered"
    if dropout:
        return "dropout on the adapters' inputs is not covered"
    if getattr(config, "mlp_bias", False) or config.hidden_act != "silu":
        return "its MLP is not Llama's"
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if config.hidden_size % 64 or config.intermediate_size % 64 or head not in (16, 32, 64, 128, 256):
        return "its widths are no multiples of 64, or its heads no power of 2"
    return None


class FastModel:
    """Losses of a model whose blocks run by ``worker.fast.block``; it shares every weight with ``model``.

    ``keep`` says for each block what it keeps for its backward pass (one word: all blocks alike); ``resident`` keeps
    the weights dequantized, 2 bytes each; ``fp8`` multiplies by them in 8 bits and keeps two copies, of 1 byte each.
    """

    def __init__(
        self, model: PeftModel, *, keep: Keep | Sequence[Keep] = "all", resident: bool = False, fp8: bool = False
    ) -> None:
        base = model.get_base_model()
        self._backbone: Any = base.model
        self._head: Tensor = base.lm_head.weight
        weights = Fp8Weights() if fp8 else Weights(resident=resident)
        window = getattr(base.config, "sliding_window", None)
        if getattr(base.config, "use_sliding_window", True) is False:
            window = None
        self.blocks = [Block(layer, weights, window=window, dtype=self._head.dtype) for layer in self._backbone.layers]
        self._groups = [group for block in self.blocks for group in block.groups]
        self._parameters = [p for block in self.blocks for p in block.parameters]
        self.keep(keep)

    def keep(self, what: Keep | Sequence[Keep]) -> None:
        """What each block keeps for its backward pass: one word for all, or one for each."""
        words = [what] * len(self.blocks) if isinstance(what, str) else what
        for block, word in zip(self.blocks, words, strict=True):
            block.keep = word

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Sum of the losses over the trained tokens, and the number of them that were predicted right.

        ``batch`` is what ``worker.sequences.collate`` makes, on the model's device.
        """
        with torch.autocast(self._head.device.type, enabled=False):
            loss, hits = _Pass.apply(self, batch, torch.is_grad_enabled(), *self._parameters)  # type: ignore[no-untyped-call]
        return loss, hits

    def forward(self, batch: dict[str, Any], *, backward: bool) -> tuple[Tensor, Tensor, "_Left | None"]:
        """As ``loss``, outside autograd; with ``backward`` also what that needs."""
        refresh(self._groups)
        row = Row(batch["bounds"], batch["lengths"])
        x = self._backbone.embed_tokens(batch["input_ids"])
        cos, sin = (table[0].contiguous() for table in self._backbone.rotary_emb(x, batch["position_ids"]))
        x, kept = x[0], []
        for block in self.blocks:
            # After the last block only what predicts a trained token counts.
            rows = batch["trained"] if block is self.blocks[-1] else None
            x, one = block.forward(x, cos, sin, row, rows)
            if backward:
                kept.append(one)
            del one
        norm, last = self._backbone.norm, x
        hidden = torch.empty_like(last)
        scale = ops.rms_norm_forward(last, norm.weight, norm.variance_epsilon, hidden)
        loss, hits, at_hidden = linear_cross_entropy(hidden, self._head, batch["targets"], backward=backward)
        if at_hidden is None:
            return loss, hits, None
        return loss, hits, _Left(kept, last, scale, at_hidden, cos, sin, row)

    def backward(self, factor: Tensor, left: "_Left") -> list[Tensor]:
        """Gradients of the adapters, in the blocks' order, for a loss of which the sum is taken ``factor`` times."""
        at_hidden = left.at_hidden * factor.to(left.at_hidden.dtype)
        grad, _ = ops.rms_norm_backward(at_hidden, left.last, self._backbone.norm.weight, left.scale, None)
        gradients: list[list[Tensor]] = []
        for number in reversed(range(len(self.blocks))):
            at_x, of_block = self.blocks[number].backward(
                grad, left.kept.pop(), left.cos, left.sin, left.row, first=number == 0
            )
            gradients.append(of_block)
            if at_x is not None:
                grad = at_x
        return [one for of_block in reversed(gradients) for one in of_block]


@dataclass
class _Left:
    """What a forward pass leaves for the backward pass: each block's, and the head's."""

    kept: list[Kept]
    last: Tensor
    scale: Tensor
    at_hidden: Tensor
    cos: Tensor
    sin: Tensor
    row: Row


class _Pass(torch.autograd.Function):
    """A pass through the model as one node of autograd's graph; ``parameters`` are there for autograd to see."""

    @staticmethod
    def forward(
        ctx: Any, model: FastModel, batch: dict[str, Any], backward: bool, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        loss, hits, ctx.left = model.forward(batch, backward=backward)
        ctx.model = model
        ctx.mark_non_differentiable(hits)
        return loss, hits

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        model, left = ctx.model, ctx.left
        ctx.left = None
        with torch.no_grad(), torch.autocast(grads[0].device.type, enabled=False):
            return (None, None, None, *model.backward(grads[0], left))
