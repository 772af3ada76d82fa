"""Shapes from config.json, and exact numbers of parameters."""

import pytest

from core.errors import InvalidRequestError
from core.shape import read_shape
from core.specs import LoraSpec
from tests.core.shapes import LLAMA_7B, SMOLLM2

LLAMA_CONFIG = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32_000,
}


def test_llama_2_7b_has_the_parameters_that_its_report_shows():
    assert read_shape(LLAMA_CONFIG) == LLAMA_7B
    assert LLAMA_7B.parameters == 6_738_415_616
    trained = LLAMA_7B.adapter_parameters(LoraSpec(r=4))
    assert (trained, LLAMA_7B.parameters + trained) == (9_994_240, 6_748_409_856)
    assert LLAMA_7B.adapter_parameters(LoraSpec(r=8, target_modules=("q_proj", "v_proj"))) == 32 * 8 * 4 * 4096
    assert SMOLLM2.parameters == 134_515_008


@pytest.mark.parametrize("kind", ["llama", "biased llama", "mistral", "qwen2", "qwen3", "tied"])
def test_parameters_are_those_of_transformers_own_models(kind):
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "vocab_size": 300, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip
    options = {
        "biased llama": {"attention_bias": True},
        "tied": {"tie_word_embeddings": True},
        "qwen3": {"head_dim": 32},
    }
    name = kind if kind in ("mistral", "qwen2", "qwen3") else "llama"
    config = AutoConfig.for_model(name, **sizes, **options.get(kind, {}))
    model = AutoModelForCausalLM.from_config(config)
    assert read_shape(config.to_dict()).parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("broken", [{"hidden_size": None}, {"vocab_size": "many"}, {"num_hidden_layers": 0}])
def test_a_config_without_a_size_is_refused_by_name(broken):
    with pytest.raises(InvalidRequestError, match=f"no {next(iter(broken))}"):
        read_shape(LLAMA_CONFIG | broken)


def test_a_mixture_of_experts_is_refused():
    with pytest.raises(InvalidRequestError, match="mixture of experts"):
        read_shape(LLAMA_CONFIG | {"model_type": "mixtral", "num_local_experts": 8})
