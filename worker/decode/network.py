"""The network of Llama's family over a cache of slots: prompts in one flat row, then a token a row at a time."""

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from worker.decode.attention import Cache, Places, attend_to_cache, put
from worker.decode.layer import Layer, norm
from worker.fast.attention import Row, attend

#: Kinds of models whose blocks are Llama's; Qwen3 adds norms of queries and keys.
_FAMILY = ("llama", "mistral", "qwen2", "qwen3")
#: Rotary positions that do not depend on how long the text has become.
_ROTARY = ("default", "linear", "llama3")


def uncovered(model: PreTrainedModel, longest: int) -> str | None:
    """Why answers of up to ``longest`` tokens, prompt included, can't be decoded here; None when they can."""
    config = model.config
    if config.model_type not in _FAMILY:
        return f"models of kind {config.model_type} are not covered"
    window = getattr(config, "sliding_window", None)
    if window is not None and window < longest and getattr(config, "use_sliding_window", True):
        return f"its attention window of {window:,} tokens is shorter than the longest text"
    rotary = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rotary not in _ROTARY:
        return f"rotary positions of type {rotary} are not covered"
    if model.device.type == "cuda" and model.dtype == torch.float32:
        return "float32 on a GPU is not covered"
    if model.device.type == "cuda" and _head(config) not in (16, 32, 64, 128, 256):
        return f"heads of {_head(config)} values are not covered on a GPU"
    return None


def _head(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


class Network:
    """Runs a dense model's own layers; it shares every weight with the model."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._backbone: Any = model.model
        self._lm_head: Any = model.lm_head
        self._head = _head(model.config)
        self._key_heads = int(model.config.num_key_value_heads)
        self._layers = [Layer(layer, self._head) for layer in self._backbone.layers]
        self._dtype, self.device = model.dtype, model.device

    def slot_bytes(self, places: int) -> int:
        """Bytes that a slot of the cache takes."""
        return 2 * len(self._layers) * self._key_heads * places * self._head * int(self._dtype.itemsize)

    def make_cache(self, slots: int, places: int) -> list[Cache]:
        """An empty cache, one part a layer."""
        shape = (len(self._layers), 2, slots, self._key_heads, places, self._head)
        # Zeros: what a masked place holds is multiplied by 0, and NaN times 0 is NaN.
        return [Cache(*part) for part in torch.zeros(shape, dtype=self._dtype, device=self.device)]

    def read(self, prompts: list[list[int]], slots: list[int], cache: list[Cache]) -> Tensor:
        """Put prompts into their slots; the logits [prompts, words] of the token that follows each."""
        lengths = [len(prompt) for prompt in prompts]
        bounds = [0, *accumulate(lengths)]
        ids = self._tensor([token for prompt in prompts for token in prompt])
        places = self._tensor([place for length in lengths for place in range(length)])
        rows = self._tensor([slot for slot, length in zip(slots, lengths, strict=True) for _ in range(length)])
        row = Row(self._tensor(bounds).to(torch.int32), lengths, max(lengths))
        at = Places(rows, places, max(lengths) - 1)
        x, tables = self._start(ids, places)
        for layer, part in zip(self._layers, cache, strict=True):
            q, k, v = layer.project(x)
            put(q, k, v, tables, at, part)
            x = layer.finish(x, attend(q, k, v, row, None))
        return self._logits(x[self._tensor([bound - 1 for bound in bounds[1:]])])

    def step(self, ids: Tensor, at: Places, cache: list[Cache]) -> Tensor:
        """One token a row, ``ids`` [rows]: the logits [rows, words] of the next."""
        x, tables = self._start(ids, at.places)
        for layer, part in zip(self._layers, cache, strict=True):
            q, k, v = layer.project(x)
            put(q, k, v, tables, at, part)
            x = layer.finish(x, attend_to_cache(q, part, at))
        return self._logits(x)

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)

    def _start(self, ids: Tensor, places: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        x = self._backbone.embed_tokens(ids)
        cos, sin = self._backbone.rotary_emb(x, places[None])
        return x, (cos[0].contiguous(), sin[0].contiguous())

    def _logits(self, x: Tensor) -> Tensor:
        return self._lm_head(norm(self._backbone.norm, x))  # type: ignore[no-any-return]
