"""The memory that a fine-tune takes, part by part, from the model's shape alone.

Pure arithmetic: the worker plans by it, an estimate shows it, and a job's manifest compares it with what was measured.
A ``pass`` is one forward and backward pass over whole samples that lie end to end; T stands for its tokens.
"""

from dataclasses import dataclass
from typing import Literal, cast

from pydantic import BaseModel, ConfigDict

from core.shape import ModelShape, targets
from core.specs import LINEAR_LAYERS, LinearLayer, LoraSpec, Optimizer, QuantizationSpec

Device = Literal["cuda", "cpu"]
#: What a block keeps for its backward pass, as in worker.fast.block: all that is dear, that without the MLP's inner
#: values, or its input alone. Without the fast path it is all or the input.
Keep = Literal["all", "attention", "input"]

#: Layers that the fast path computes in one matmul.
GROUPS: tuple[tuple[LinearLayer, ...], ...] = (
    ("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",),
)  # fmt: skip
#: A group's adapter columns are padded to a multiple of this.
_ALIGN = 64
#: Tokens whose logits are there at once (worker.fast.loss).
_LOGITS = 4096
#: Words of the vocabulary whose logits TRL's head for preferences has at once.
_TILE = 32_768
#: Bits a parameter: 4-bit values, and their constants, one for 64 values. With double quantization a constant takes 8
#: bits, and 256 of them share one of 32.
_CONSTANT_BITS = {True: 8 / 64 + 32 / (64 * 256), False: 32 / 64}
#: Bytes of an optimizer's state a trained parameter. 8-bit states have a constant of 32 bits for 256 values.
_OPTIMIZER_BYTES: dict[Optimizer, float] = {
    "adamw_torch_fused": 8,
    "adamw_torch": 8,
    "paged_adamw_32bit": 8,
    "adamw_8bit": 2 + 2 * 4 / 256,
    "paged_adamw_8bit": 2 + 2 * 4 / 256,
}
#: Bytes of cuDNN's workspace for attention's backward pass, a token and a value of all heads' queries: sums in float32,
#: over samples padded to the longest.
_ATTENTION_BYTES = 12
#: And at most so many bytes in all where heads share keys.
_GROUPED_ROOM = 10**9
#: cuBLAS's workspace of one stream on Hopper.
_WORKSPACE: dict[Device, int] = {"cuda": 2**25, "cpu": 0}
#: The CUDA context, libraries' handles and code.
CUDA_CONTEXT = 600 * 10**6
#: On a processor it is Python with torch and transformers.
_CONTEXT: dict[Device, int] = {"cuda": CUDA_CONTEXT, "cpu": 700 * 10**6}
#: On a processor, what lies free between plain torch's activations, as a share of these: the C library takes memory for
#: small tensors from one heap, and such a model has thousands.
_HOLES = 1.0
#: What the allocator keeps and can't hand out again: a number of bytes, and a share of what is handed out.
_FRAGMENTS: dict[Device, tuple[int, float]] = {"cuda": (500 * 10**6, 0.01), "cpu": (0, 0.05)}


@dataclass(frozen=True)
class Setup:
    """What the memory depends on beside the model's shape and the size of a pass."""

    lora: LoraSpec
    quantization: QuantizationSpec
    optimizer: Optimizer
    #: Bytes of a value in the compute type: 2 or 4.
    value_bytes: int
    device: Device
    fast_path: bool = True
    #: The base in 8 bits, of which there are two copies: as much as resident weights take, and never without them.
    fp8: bool = False
    #: Tokens of a row where samples are rows, padded to the longest, as preferences are; None: they lie end to end.
    row_tokens: int | None = None


@dataclass(frozen=True)
class KeepCounts:
    """How many blocks keep what.

    Blocks that keep less come first in the network: their turn in the backward pass is last, when the others' values
    are gone.
    """

    all: int
    attention: int = 0
    input: int = 0

    def by_block(self) -> list[Keep]:
        """Each block's mode, in the order of the forward pass."""
        modes: list[Keep] = []
        for mode, count in (("input", self.input), ("attention", self.attention), ("all", self.all)):
            modes += [cast("Keep", mode)] * count
        return modes


class Memory(BaseModel):
    """Bytes at the peak of a training step, by what holds them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: The base as loaded: quantized linear layers with their constants, the rest in the compute type.
    weights: int
    #: Weights of the linear layers in the compute type: of all blocks when they are resident, else of one.
    dequantized: int
    #: Float32 masters and, on the fast path, their copies in the compute type.
    adapters: int
    #: On a GPU's fast path twice: a pass's and the step's.
    gradients: int
    optimizer: int
    #: What the blocks keep for the backward pass, and what one block's backward pass takes beside it.
    activations: int
    #: Beyond ``activations``: the last norm, the logits of a few thousand tokens, the loss.
    head: int
    workspace: int
    #: Outside of torch's allocator, and what that can't hand out again.
    overhead: int

    @property
    def allocated(self) -> int:
        """What torch's allocator has handed out at the peak."""
        return self.total - self.overhead

    @property
    def total(self) -> int:
        """All that the device must have."""
        return sum(self.model_dump().values())


def weight_bytes(shape: ModelShape, quantization: QuantizationSpec, value_bytes: int = 2) -> int:
    """Bytes of the base model as loaded; what is not quantized has ``value_bytes`` a parameter."""
    return _linear_bytes(shape.linear_parameters, quantization, value_bytes) + value_bytes * shape.other_parameters


def _linear_bytes(parameters: int, quantization: QuantizationSpec, value_bytes: int) -> int:
    if quantization.type == "none":
        return value_bytes * parameters
    return int(parameters * (4 + _CONSTANT_BITS[quantization.double_quantization]) / 8)


def weights_by_bits(shape: ModelShape, *, double_quantization: bool = True) -> dict[int, int]:
    """Bytes of the base model at 32, 16 and 4 bits; at 4 bits, what is never quantized has 16."""
    four = QuantizationSpec(type="nf4", double_quantization=double_quantization)
    return {32: 4 * shape.parameters, 16: 2 * shape.parameters, 4: weight_bytes(shape, four)}


def predict(shape: ModelShape, setup: Setup, tokens: int, keep: KeepCounts, *, resident: bool = False) -> Memory:
    """The memory at the peak of a step whose largest pass has ``tokens`` tokens."""
    trained = shape.adapter_parameters(setup.lora)
    activations, head = _pass_bytes(shape, setup, tokens, keep)
    parts = {
        "weights": weight_bytes(shape, setup.quantization, setup.value_bytes),
        "dequantized": _dequantized_bytes(shape, setup, resident=resident),
        "adapters": 4 * trained + _copy_bytes(shape, setup, resident=resident),
        "gradients": 4 * trained * (2 if setup.fast_path and setup.device == "cuda" else 1),
        "optimizer": int(_OPTIMIZER_BYTES[setup.optimizer] * trained),
        "activations": activations,
        "head": head,
        "workspace": _WORKSPACE[setup.device],
    }
    fixed, share = _FRAGMENTS[setup.device]
    overhead = _CONTEXT[setup.device] + fixed + int(share * sum(parts.values()))
    return Memory(**parts, overhead=overhead)


# --- What does not depend on the pass --------------------------------------------------------------------------------


def _extra(group: tuple[LinearLayer, ...], lora: LoraSpec) -> int:
    """The adapters' columns of a group: a multiple of 64, from 128 on a power of 2 (worker.fast.lora)."""
    columns = lora.r * sum(layer in targets(lora) for layer in group)
    return -(-columns // _ALIGN) * _ALIGN if columns <= 2 * _ALIGN else 1 << (columns - 1).bit_length()


def _dequantized_bytes(shape: ModelShape, setup: Setup, *, resident: bool) -> int:
    """The fast path's weights with the adapters' columns: scratch for one block, or all blocks' own."""
    if not setup.fast_path:
        # One layer's at a time, made by bitsandbytes: the largest.
        largest = max(inputs * outputs for inputs, outputs in map(shape.features, LINEAR_LAYERS))
        return 0 if setup.quantization.type == "none" else setup.value_bytes * largest
    block = 0
    for group in GROUPS:
        inputs = shape.features(group[0])[0]
        block += (inputs + _extra(group, setup.lora)) * sum(shape.features(layer)[1] for layer in group)
    return setup.value_bytes * block * (shape.layers if resident else 1)


def _copy_bytes(shape: ModelShape, setup: Setup, *, resident: bool) -> int:
    """Copies of A (padded) and B in the compute type; resident weights hold B themselves."""
    if not setup.fast_path:
        return 0
    a = sum(shape.features(group[0])[0] * _extra(group, setup.lora) for group in GROUPS)
    b = 0 if resident else setup.lora.r * sum(shape.features(layer)[1] for layer in targets(setup.lora))
    return setup.value_bytes * shape.layers * (a + b)


# --- What depends on it ----------------------------------------------------------------------------------------------


def _pass_bytes(shape: ModelShape, setup: Setup, tokens: int, keep: KeepCounts) -> tuple[int, int]:
    """Activations and head at the moment when they are largest together."""
    per_token = {mode: _kept(shape, setup, mode) for mode in ("all", "attention", "input")}
    modes = keep.by_block()
    kept = sum(per_token[mode] for mode in modes)
    head = _head_bytes(shape, setup, tokens)
    # At the loss everything is kept, and the head's share comes on top. In the backward pass a block that kept less
    # first computes it again; what the blocks after it kept is gone by then.
    peak, at_head = kept * tokens + head, head
    transient = _transient(shape, setup)
    fixed = _attention_room(shape, setup, tokens)
    for mode in reversed(modes):
        here = (kept + per_token["all"] - per_token[mode] + transient) * tokens + fixed
        if here > peak:
            peak, at_head = here, 0
        kept -= per_token[mode]
    quadratic = 0 if setup.fast_path else _mask_bytes(setup, tokens, setup.row_tokens or tokens)
    holes = 0 if setup.fast_path or setup.device != "cpu" else _HOLES * (peak - at_head)
    return int(peak - at_head + holes) + quadratic, at_head


def _kept(shape: ModelShape, setup: Setup, mode: Keep) -> float:
    """Bytes a token that a block keeps for its backward pass (worker.fast.block)."""
    size, width, mlp = setup.value_bytes, shape.hidden_size, shape.intermediate_size
    if not setup.fast_path:
        return size * width if mode == "input" else _kept_by_autograd(shape, setup)
    columns = dict.fromkeys(targets(setup.lora), setup.lora.r)
    qkv, out, gate_up, down = (sum(columns.get(layer, 0) for layer in group) for group in GROUPS)
    if mode == "input":
        return size * (width + down)
    # Attention's output lies in the output layer's input, with the adapters' columns; a processor has it twice.
    attended = shape.query_size + (_extra(GROUPS[1], setup.lora) if setup.device == "cuda" else shape.query_size)
    attention = 2 * width + shape.query_size + 2 * shape.kv_size + attended + qkv + out + down
    scales = 4 * (2 + shape.heads)
    if shape.head_norms:  # queries and keys before their norms as well
        attention += shape.query_size + shape.kv_size
        scales += 4 * (shape.heads + shape.kv_heads)
    return size * attention + scales + (size * (2 * mlp + gate_up) if mode == "all" else 0)


def _kept_by_autograd(shape: ModelShape, setup: Setup) -> float:
    """Bytes a token that PEFT's layers in transformers' block leave in autograd's graph.

    Counted with ``torch.autograd.graph.saved_tensors_hooks``: the norms' inputs in float32, the inputs of the adapters
    of q, k, v and of gate, up, then q, k, v and attention's output, then the MLP's gate, its SiLU, up and their
    product. Keys and values are repeated for the heads that share them, since a mask keeps the samples apart. Dropout
    keeps an output and a mask for every layer instead of one input for layers that share it.
    """
    size, width, mlp, queries = setup.value_bytes, shape.hidden_size, shape.intermediate_size, shape.query_size
    kept = 8 * width + size * (2 * width + 4 * queries + 4 * mlp)
    if setup.device == "cpu" and size < 4:
        # PEFT sees no autocast on a processor, and turns each layer's input into float32 and so into a copy of its own.
        kept += size * (3 * width + queries + mlp)
    if setup.lora.dropout:
        kept += (3 * size + 5) * width + (size + 1) * queries + mlp
    return kept


def _transient(shape: ModelShape, setup: Setup) -> float:
    """Bytes a token that a block's backward pass takes at most beside what it kept or computed again.

    On the fast path either in the MLP, for the gradient at its product, or in attention, for the gradients at its
    output and at q, k, v; by then the MLP's own values are gone. Seven rows of the model's width are there in either:
    gradients at a block's and a norm's output, and what the head left. So measured within 0.02 MB a token in each mode
    (benchmarks/results/h100-2026-11-27/memory-of-blocks.txt). A processor's reference code holds SwiGLU's factors too.
    """
    size, width, mlp = setup.value_bytes, shape.hidden_size, shape.intermediate_size
    if not setup.fast_path:
        return size * (2 * width + 4 * mlp)
    in_mlp = size * (7 * width + mlp + _extra(GROUPS[3], setup.lora))
    at_qkv = 2 * shape.query_size + 2 * shape.kv_size + _extra(GROUPS[1], setup.lora)
    in_attention = size * (7 * width + at_qkv - 2 * mlp) + _ATTENTION_BYTES * shape.query_size
    if setup.device == "cpu":
        return in_mlp + 4 * 5 * mlp
    return max(in_mlp, in_attention)


def _attention_room(shape: ModelShape, setup: Setup, tokens: int) -> int:
    """What cuDNN takes beyond ``_ATTENTION_BYTES`` where heads share keys; it goes through the samples in groups."""
    if setup.device == "cpu" or not setup.fast_path or shape.heads == shape.kv_heads:
        return 0
    return max(0, min(_GROUPED_ROOM, 40 * shape.query_size * tokens))


def _head_bytes(shape: ModelShape, setup: Setup, tokens: int) -> int:
    """The last block's output, the last norm's input and output and the loss's gradient, beside the logits.

    Every token counts as trained. Without the fast path the logits of a whole pass are there at once.
    """
    size, width = setup.value_bytes, shape.hidden_size
    if setup.fast_path:
        chunk = min(tokens, _LOGITS) * shape.vocab_size * (size if setup.device == "cuda" else size + 8)
        return tokens * width * 4 * size + chunk
    if setup.row_tokens is not None:
        # TRL's head for preferences goes through the vocabulary by tiles: a tile's logits, their softmax and gradient
        # in float32. A processor has the tile of the head's weights in float32 as well.
        tile = min(shape.vocab_size, _TILE)
        weights = 4 * tile * width if setup.device == "cpu" else 0
        return tokens * (width * (8 + 2 * size) + 12 * tile) + weights
    # Plain torch turns 16-bit logits into float32; their softmax, later their gradient, lies beside them. The last norm
    # is in float32 too: its input and output are there at the loss, their gradients once the logits are gone.
    logits = tokens * shape.vocab_size * (8 if setup.device == "cuda" else size + 8)
    return max(tokens * width * (8 + 2 * size) + logits, tokens * width * (16 + 4 * size))


def _mask_bytes(setup: Setup, tokens: int, row: int) -> int:
    """The mask that keeps samples and padding apart where attention takes no bounds.

    Each token against its row's, as truth values and as numbers; without padding all tokens are one row.
    """
    return (1 + setup.value_bytes) * tokens * row
