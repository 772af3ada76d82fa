"""A causal language model of the Llama family, with its adapters, on the fast path."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from core.plan import REPLAYED
from worker.fast import ops
from worker.fast.block import Block, Keep, Kept
from worker.fast.fp8 import Fp8Weights
from worker.fast.graphs import Gradients, Graphs, Pass
from worker.fast.lora import Weights, refresh
from worker.fast.loss import linear_cross_entropy

#: Kinds of models whose blocks are Llama's: two RMS norms, rotary positions, SwiGLU. Qwen3 adds norms of its heads.
_FAMILY = ("llama", "mistral", "qwen2", "qwen3")


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
    if len(set(getattr(config, "layer_types", None) or ())) > 1:
        return "its layers differ in their attention's window"
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if config.hidden_size % 64 or config.intermediate_size % 64 or head not in (16, 32, 64, 128, 256):
        return "its widths are no multiples of 64, or its heads no power of 2"
    return None


class FastModel:
    """Losses of a model whose blocks run by ``worker.fast.block``; it shares every weight with ``model``.

    ``keep`` says for each block what it keeps for its backward pass (one word: all blocks alike); ``resident`` keeps
    the weights dequantized, 2 bytes each; ``fp8`` multiplies by them in 8 bits and keeps two copies, of 1 byte each.
    Validation multiplies in 16 bits all the same: so the adapter is used afterwards.
    """

    def __init__(
        self, model: PeftModel, *, keep: Keep | Sequence[Keep] = "all", resident: bool = False, fp8: bool = False
    ) -> None:
        base = model.get_base_model()
        self._backbone: Any = base.model
        self._head: Tensor = base.lm_head.weight
        self._weights = weights = Fp8Weights() if fp8 else Weights(resident=resident)
        window = getattr(base.config, "sliding_window", None)
        if getattr(base.config, "use_sliding_window", True) is False:
            window = None
        self.blocks = [Block(layer, weights, window=window, dtype=self._head.dtype) for layer in self._backbone.layers]
        self._groups = [group for block in self.blocks for group in block.groups]
        self._parameters = [p for block in self.blocks for p in block.parameters]
        self.keep(keep)
        device = self._head.device
        self._graphs = Graphs(self._there_and_back, self._parameters, device) if device.type == "cuda" else None

    def keep(self, what: Keep | Sequence[Keep]) -> None:
        """What each block keeps for its backward pass: one word for all, or one for each."""
        words = [what] * len(self.blocks) if isinstance(what, str) else what
        for block, word in zip(self.blocks, words, strict=True):
            block.keep = word

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Sum of the losses over the trained tokens, and the number of them that were predicted right.

        ``batch`` is what ``worker.sequences.collate`` makes, on the model's device.
        """
        one = Pass.of(batch)
        with torch.autocast(self._head.device.type, enabled=False):
            self._weights.keep(self._groups)
            if torch.is_grad_enabled():
                loss, hits = _Trained.apply(self, one, *self._parameters)  # type: ignore[no-untyped-call]
            else:
                loss, hits = self._validate(one)
        return loss, hits

    def train(self, one: Pass) -> Gradients:
        """Loss, hits and the adapters' gradients, outside autograd. The next call may overwrite the gradients."""
        if self._graphs is None:
            return self._there_and_back(one)
        if one.input_ids.numel() > REPLAYED:
            with self._graphs.inside():
                return self._there_and_back(one)
        return self._graphs(one)

    def _validate(self, one: Pass) -> tuple[Tensor, Tensor]:
        with self._graphs.inside() if self._graphs is not None else nullcontext(), self._in_16_bits():
            end = self._forward(one, None)
            loss, hits, _ = linear_cross_entropy(end.hidden, self._head, one.targets, backward=False)
        return loss, hits

    @contextmanager
    def _in_16_bits(self) -> Iterator[None]:
        if not isinstance(self._weights, Fp8Weights):
            yield
            return
        plain = Weights(resident=False)
        for block in self.blocks:
            block.weights = plain
        try:
            yield
        finally:
            for block in self.blocks:
                block.weights = self._weights

    def _there_and_back(self, one: Pass) -> Gradients:
        kept: list[Kept] = []
        end = self._forward(one, kept)
        loss, hits, at_hidden = linear_cross_entropy(end.hidden, self._head, one.targets, backward=True)
        assert at_hidden is not None
        norm = self._backbone.norm
        grad, _ = ops.rms_norm_backward(at_hidden, end.last, norm.weight, end.scale, None)
        del at_hidden
        gradients: list[list[Tensor]] = []
        for number in reversed(range(len(self.blocks))):
            at_x, of_block = self.blocks[number].backward(
                grad, kept.pop(), end.cos, end.sin, one.row, first=number == 0
            )
            gradients.append(of_block)
            if at_x is not None:
                grad = at_x
        return Gradients(loss, hits, [one for of_block in reversed(gradients) for one in of_block])

    def _forward(self, one: Pass, kept: list[Kept] | None) -> "_End":
        """Through the blocks and the last norm; ``kept`` receives what the backward pass needs."""
        refresh(self._groups)
        x = self._backbone.embed_tokens(one.input_ids)
        cos, sin = (table[0].contiguous() for table in self._backbone.rotary_emb(x, one.position_ids))
        x = x[0]
        for block in self.blocks:
            # After the last block only what predicts a trained token counts.
            rows = one.trained if block is self.blocks[-1] else None
            x, of_block = block.forward(x, cos, sin, one.row, rows)
            if kept is not None:
                kept.append(of_block)
            del of_block
        norm, hidden = self._backbone.norm, torch.empty_like(x)
        scale = ops.rms_norm_forward(x, norm.weight, norm.variance_epsilon, hidden)
        return _End(hidden, x, scale, cos, sin)


@dataclass
class _End:
    """Where a forward pass ends: the last norm's output, input and scales; and the rotations' tables."""

    hidden: Tensor
    last: Tensor
    scale: Tensor
    cos: Tensor
    sin: Tensor


class _Trained(torch.autograd.Function):
    """A pass through the model as one node of autograd's graph; ``parameters`` are there for autograd to see.

    The gradients are made with the loss, as in worker.fast.loss, and only scaled backward.
    """

    @staticmethod
    def forward(ctx: Any, model: FastModel, one: Pass, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        found = model.train(one)
        ctx.gradients = found.of_parameters
        ctx.mark_non_differentiable(found.hits)
        return found.loss, found.hits

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        return (None, None, *torch._foreach_mul(gradients, grads[0].to(gradients[0].dtype)))
