"""The network of Llama's family over a cache of slots: prompts in one flat row, then a token a row at a time."""

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from worker.decode.attention import attend_to_cache
from worker.fast import ops
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


@dataclass(frozen=True)
class Cache:
    """Keys and values [layers, slots, key heads, places, head]."""

    keys: Tensor
    values: Tensor


class Network:
    """Runs a dense model's own layers; it shares every weight with the model."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._backbone: Any = model.model
        self._lm_head: Any = model.lm_head
        self._head = _head(model.config)
        self._key_heads = int(model.config.num_key_value_heads)
        self._dtype, self.device = model.dtype, model.device

    def slot_bytes(self, places: int) -> int:
        """Bytes that a slot of the cache takes."""
        return 2 * len(self._backbone.layers) * self._key_heads * places * self._head * int(self._dtype.itemsize)

    def make_cache(self, slots: int, places: int) -> Cache:
        """An empty cache."""
        shape = (len(self._backbone.layers), slots, self._key_heads, places, self._head)
        # Zeros: what a masked place holds is multiplied by 0, and NaN times 0 is NaN.
        return Cache(*(torch.zeros(shape, dtype=self._dtype, device=self.device) for _ in range(2)))

    def read(self, prompts: list[list[int]], slots: list[int], cache: Cache) -> Tensor:
        """Put prompts into their slots; the logits [prompts, words] of the token that follows each."""
        lengths = [len(prompt) for prompt in prompts]
        bounds = [0, *accumulate(lengths)]
        ids = self._tensor([token for prompt in prompts for token in prompt])
        places = self._tensor([place for length in lengths for place in range(length)])
        rows = self._tensor([slot for slot, length in zip(slots, lengths, strict=True) for _ in range(length)])
        row = Row(self._tensor(bounds).to(torch.int32), lengths)
        x, tables = self._start(ids, places)
        for number, layer in enumerate(self._backbone.layers):
            q, k, v = self._project(layer, x, tables)
            cache.keys[number][rows, :, places] = k
            cache.values[number][rows, :, places] = v
            x = self._finish(layer, x, attend(q, k, v, row, None))
        return self._logits(x[self._tensor([bound - 1 for bound in bounds[1:]])])

    def step(self, ids: Tensor, slots: Tensor, places: Tensor, longest: int, cache: Cache) -> Tensor:
        """One token a row, ``ids`` [rows] at ``places`` of ``slots``: the logits [rows, words] of the next."""
        x, tables = self._start(ids, places)
        for number, layer in enumerate(self._backbone.layers):
            q, k, v = self._project(layer, x, tables)
            cache.keys[number][slots, :, places] = k
            cache.values[number][slots, :, places] = v
            mixed = attend_to_cache(q, cache.keys[number], cache.values[number], slots, places, longest)
            x = self._finish(layer, x, mixed)
        return self._logits(x)

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)

    def _start(self, ids: Tensor, places: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        x = self._backbone.embed_tokens(ids)
        cos, sin = self._backbone.rotary_emb(x, places[None])
        return x, (cos[0].contiguous(), sin[0].contiguous())

    def _project(self, layer: Any, x: Tensor, tables: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [tokens, heads, head], rotated."""
        attention = layer.self_attn
        normed = _norm(layer.input_layernorm, x)
        q, k, v = (
            project(normed).view(len(x), -1, self._head)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        if (q_norm := getattr(attention, "q_norm", None)) is not None:
            q, k = q_norm(q), attention.k_norm(k)
        for heads in (q, k):
            flat = heads.view(len(x), -1)
            ops.rotate(flat, flat, *tables)
        return q, k, v

    def _finish(self, layer: Any, x: Tensor, mixed: Tensor) -> Tensor:
        x = x + layer.self_attn.o_proj(mixed.reshape(len(x), -1))
        return x + layer.mlp(_norm(layer.post_attention_layernorm, x))  # type: ignore[no-any-return]

    def _logits(self, x: Tensor) -> Tensor:
        return self._lm_head(_norm(self._backbone.norm, x))  # type: ignore[no-any-return]


def _norm(norm: Any, x: Tensor) -> Tensor:
    """The layer's own norm on the processor, one kernel in place of six on a GPU."""
    if not x.is_cuda:
        return norm(x)  # type: ignore[no-any-return]
    out = torch.empty_like(x)
    ops.rms_norm_forward(x, norm.weight, norm.variance_epsilon, out)
    return out
