"""Base models with the shapes of known ones and random weights, made in memory: nothing is read or downloaded."""

from typing import Any

KINDS: dict[str, dict[str, Any]] = {
    "llama-2-7b": {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32_000,
    },
    "smollm2-135m": {
        "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49_152, "tie_word_embeddings": True,
    },
    "mistral-7b": {
        "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32_000, "sliding_window": None,
    },
    "qwen2.5-7b": {
        "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152_064,
    },
    "tiny": {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512, "tie_word_embeddings": True,
    },
}  # fmt: skip


def make_model(kind: str, device: str, dtype: Any) -> Any:
    """A model of a known shape, its linear layers in NF4 with double quantization, the rest in ``dtype``."""
    import bitsandbytes as bnb
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = dict(KINDS[kind])
    config = AutoConfig.for_model(sizes.pop("model_type"), max_position_embeddings=32_768, **sizes)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    torch.manual_seed(0)
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            sizes_of_layer = module.in_features, module.out_features
            layer = bnb.nn.Linear4bit(*sizes_of_layer, bias=False, compute_dtype=dtype, quant_type="nf4", device="meta")
            weight = torch.randn(*reversed(sizes_of_layer), dtype=dtype, device=device) * 0.02
            layer.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", module=layer)
            layer.to(device)
            if module.bias is not None:
                layer.bias = torch.nn.Parameter(torch.zeros(module.out_features, dtype=dtype, device=device))
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, layer)
    _fill(model, device, dtype)
    model.is_loaded_in_4bit = True
    model.requires_grad_(False)
    model.config.use_cache = False
    return model


def _fill(model: Any, device: str, dtype: Any) -> None:
    """Give what is still without memory its values: tables at random, norms one; buffers as the model makes them."""
    import torch

    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                made = torch.ones if parameter.dim() == 1 else torch.randn
                value = made(parameter.shape, dtype=dtype, device=device) * (1 if parameter.dim() == 1 else 0.02)
                setattr(module, name, torch.nn.Parameter(value, requires_grad=False))
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            fresh = type(module)(config=model.config).to(device)
            for name, buffer in fresh.named_buffers(recurse=False):
                module.register_buffer(name, buffer, persistent=False)
            for name, value in vars(fresh).items():
                if name.startswith("original_"):
                    setattr(module, name, value)
    model.tie_weights()


def make_tokenizer(words: int = 300) -> Any:
    """A tokenizer for trainers that want one."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3} | {f"w{n}": n for n in range(4, words)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")),
        unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>",
    )  # fmt: skip


def make_rows(count: int, length: int, words: int = 300) -> list[dict[str, list[int]]]:
    """Samples of ``length`` tokens, all of them trained."""
    import random

    chance = random.Random(0)
    rows = [[chance.randrange(4, words) for _ in range(length)] for _ in range(count)]
    return [{"input_ids": ids, "labels": ids} for ids in rows]
