"""A causal language model of the Llama family, with its adapters, on the fast path."""

from typing import Any

from peft import PeftModel
from torch import Tensor

from worker.fast.attention import Row
from worker.fast.block import Block, Keep, run_block
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
    """Losses of a model whose blocks run by ``worker.fast.block``; it shares every weight with ``model``."""

    def __init__(self, model: PeftModel, *, resident: bool = False) -> None:
        base = model.get_base_model()
        self._backbone: Any = base.model
        self._head: Tensor = base.lm_head.weight
        weights = Weights(resident=resident)
        window = getattr(base.config, "sliding_window", None)
        if getattr(base.config, "use_sliding_window", True) is False:
            window = None
        self.blocks = [Block(layer, weights, window=window, dtype=self._head.dtype) for layer in self._backbone.layers]
        self._groups = [group for block in self.blocks for group in block.groups]

    def keep(self, what: Keep, *, every: int = 1) -> None:
        """What each ``every``-th block keeps for its backward pass; the others keep all."""
        for number, block in enumerate(self.blocks):
            block.keep = what if number % every == 0 else "all"

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Sum of the losses over the trained tokens, and the number of them that were predicted right.

        ``batch`` is what ``worker.sequences.collate`` makes, on the model's device.
        """
        refresh(self._groups)
        row = Row(batch["bounds"], batch["lengths"])
        x = self._backbone.embed_tokens(batch["input_ids"])
        cos, sin = self._backbone.rotary_emb(x, batch["position_ids"])
        for block in self.blocks:
            x = run_block(x, cos, sin, row, block, block.parameters)
        hidden = self._backbone.norm(x[0].index_select(0, batch["trained"]))
        return linear_cross_entropy(hidden, self._head, batch["targets"])
