"""The shape of a base model: the sizes in its config.json, and the parameters that follow from them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.errors import InvalidRequestError
from core.specs import LINEAR_LAYERS, LinearLayer, LoraSpec

#: Kinds whose config.json need not say that the query, key and value layers have biases.
_BIASED = ("qwen2",)
#: Kinds that normalize each head's queries and keys.
_NORMED_HEADS = ("qwen3",)


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder of Llama's kind: two norms a block, attention with grouped keys, a gated MLP."""

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    tied_embeddings: bool = False
    #: Biases of the query, key and value layers, and of the output layer.
    attention_bias: bool = False
    output_bias: bool = False
    #: Norms of each head's queries and keys.
    head_norms: bool = False

    @property
    def query_size(self) -> int:
        """Width of all heads' queries."""
        return self.heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all heads' keys; values have the same."""
        return self.kv_heads * self.head_dim

    def features(self, layer: LinearLayer) -> tuple[int, int]:
        """Inputs and outputs of one of a block's linear layers."""
        width, mlp = self.hidden_size, self.intermediate_size
        return {
            "q_proj": (width, self.query_size),
            "k_proj": (width, self.kv_size),
            "v_proj": (width, self.kv_size),
            "o_proj": (self.query_size, width),
            "gate_proj": (width, mlp),
            "up_proj": (width, mlp),
            "down_proj": (mlp, width),
        }[layer]

    @property
    def block_linear_parameters(self) -> int:
        """Weights of one block's linear layers: what is quantized."""
        return sum(inputs * outputs for inputs, outputs in map(self.features, LINEAR_LAYERS))

    @property
    def linear_parameters(self) -> int:
        """Weights of all blocks' linear layers."""
        return self.layers * self.block_linear_parameters

    @property
    def other_parameters(self) -> int:
        """Embeddings, head, norms and biases: what is never quantized. A tied head counts once."""
        tables = (1 if self.tied_embeddings else 2) * self.vocab_size * self.hidden_size
        norms = (2 * self.layers + 1) * self.hidden_size + self.layers * 2 * self.head_dim * self.head_norms
        biases = (self.query_size + 2 * self.kv_size) * self.attention_bias + self.hidden_size * self.output_bias
        return tables + norms + self.layers * biases

    @property
    def parameters(self) -> int:
        """All of the base model's parameters."""
        return self.linear_parameters + self.other_parameters

    def adapter_parameters(self, lora: LoraSpec) -> int:
        """Parameters of an adapter: A [r, in] and B [out, r] for each layer that it targets."""
        return self.layers * sum(lora.r * sum(self.features(layer)) for layer in targets(lora))


def targets(lora: LoraSpec) -> tuple[LinearLayer, ...]:
    """The layers of a block that get an adapter, in the order of its forward pass."""
    if lora.target_modules == "all-linear":
        return LINEAR_LAYERS
    return tuple(layer for layer in LINEAR_LAYERS if layer in lora.target_modules)


def read_shape(config: Mapping[str, Any]) -> ModelShape:
    """The shape that a model's config.json describes.

    Raises InvalidRequestError when a size is missing, or when the model's MLP is no single gated one (a mixture of
    experts).
    """
    config = config.get("text_config") or config
    kind = config.get("model_type", "")
    if config.get("num_experts") or config.get("num_local_experts"):
        raise InvalidRequestError(f"The model's kind {kind!r} is a mixture of experts, whose memory is not known.")

    def size(name: str) -> int:
        value = config.get(name)
        if not isinstance(value, int) or value < 1:
            raise InvalidRequestError(f"The model's config.json has no {name}, so its memory can't be told.")
        return value

    heads, width = size("num_attention_heads"), size("hidden_size")
    bias = bool(config.get("attention_bias"))
    return ModelShape(
        hidden_size=width,
        intermediate_size=size("intermediate_size"),
        layers=size("num_hidden_layers"),
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or width // heads,
        vocab_size=size("vocab_size"),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        attention_bias=bias or kind in _BIASED,
        output_bias=bias,
        head_norms=kind in _NORMED_HEADS,
    )
