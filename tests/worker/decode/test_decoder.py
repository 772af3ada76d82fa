"""The decoder against transformers' own `generate`, in float32 on the processor."""

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from core.errors import TrainingError
from core.specs import SamplingSpec
from worker.answer import Answer
from worker.decode.decoder import decode
from worker.decode.network import Network, uncovered
from worker.decode.sampling import pick
from worker.generate import generate

SHAPE = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,  # wide enough that answers differ from one another
    "eos_token_id": 2,
    "pad_token_id": 0,
    "bos_token_id": None,
}
SCALED = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "tied": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True)),
    "biases everywhere": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True)),
    "scaled positions": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, rope_parameters=SCALED)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=128)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=32)),
}
PROMPTS = [[5 + 7 * row % 400 + place for place in range(3 + 5 * row % 23)] for row in range(7)]
ONE_BY_ONE = SamplingSpec(max_tokens=20)


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path):
    return AutoTokenizer.from_pretrained(tiny_llama)


def make(kind: str):
    torch.manual_seed(0)
    model = MODELS[kind]().eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "q_norm" in name or "k_norm" in name:
            parameter.data.normal_(1.0 if "norm" in name else 0.0, 0.2)
    return model.requires_grad_(False)


@pytest.mark.parametrize("kind", MODELS)
def test_greedy_answers_are_those_of_generate(kind, tokenizer):
    model = make(kind)
    assert uncovered(model, 64) is None
    want = generate(model, tokenizer, PROMPTS, ONE_BY_ONE)
    assert decode(model, tokenizer, PROMPTS, ONE_BY_ONE, slots=3) == want
    assert len({answer.text for answer in want}) > 1


@pytest.fixture(scope="module")
def model():
    return make("llama")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_neither_neighbours_nor_slots_change_an_answer(temperature, model, tokenizer):
    sampling = SamplingSpec(max_tokens=20, temperature=temperature, top_p=0.9)
    want = decode(model, tokenizer, PROMPTS, sampling)
    for slots in (1, 2, 5):
        assert decode(model, tokenizer, PROMPTS, sampling, slots=slots) == want


def test_an_end_token_frees_a_slot_and_stops_no_neighbour(model, tokenizer):
    free = decode(model, tokenizer, PROMPTS, ONE_BY_ONE)
    tokens = generate_tokens(model, PROMPTS[2], 20)
    stop = tokens[3]
    before = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = [stop, 2]
    try:
        ended = decode(model, tokenizer, PROMPTS, ONE_BY_ONE, slots=2)
        assert ended == generate(model, tokenizer, PROMPTS, ONE_BY_ONE)
    finally:
        model.generation_config.eos_token_id = before
    place = tokens.index(stop)
    assert ended[2] == Answer(tokenizer.decode(tokens[:place], skip_special_tokens=True), place + 1, "stop")
    assert any(answer == other for answer, other in zip(ended, free, strict=True))


def generate_tokens(model, prompt: list[int], count: int) -> list[int]:
    ids = torch.tensor([prompt])
    for _ in range(count):
        ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    return ids[0, len(prompt) :].tolist()


def test_the_longest_prompts_go_first_and_every_answer_is_told_once(model, tokenizer):
    told: list[tuple[int, Answer]] = []
    found = decode(model, tokenizer, PROMPTS, SamplingSpec(max_tokens=1), slots=2, on_batch=told.extend)
    assert sorted(number for number, _ in told) == list(range(len(PROMPTS)))
    assert [found[number] for number, _ in told] == [answer for _, answer in told]
    lengths = [len(PROMPTS[number]) for number, _ in told]
    assert lengths[::2] == sorted(lengths[::2], reverse=True)


def test_when_memory_runs_out_half_the_slots_go_on_and_nothing_is_answered_twice(model, tokenizer, monkeypatch):
    want = decode(model, tokenizer, PROMPTS, ONE_BY_ONE)
    step, sizes, told = Network.step, [], []

    def small_memory(self, ids, *rest):
        sizes.append(len(ids))
        if len(ids) > 3 or len(sizes) == 30:
            raise torch.OutOfMemoryError
        return step(self, ids, *rest)

    monkeypatch.setattr(Network, "step", small_memory)
    assert decode(model, tokenizer, PROMPTS, ONE_BY_ONE, on_batch=told.extend) == want
    assert sizes[0] == 7
    assert max(sizes[1:]) == 3
    assert max(sizes[30:]) == 1
    assert len(told) == len(PROMPTS)


def test_one_prompt_that_does_not_fit_is_named(model, tokenizer, monkeypatch):
    def no_memory(self, *rest):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Network, "read", no_memory)
    with pytest.raises(TrainingError, match="does not fit into the GPU's memory"):
        decode(model, tokenizer, PROMPTS, ONE_BY_ONE)


def test_what_is_not_covered_says_why():
    tiny = {"vocab_size": 512, "n_embd": 64, "n_layer": 1, "n_head": 2}
    assert uncovered(GPT2LMHeadModel(GPT2Config(**tiny)), 10) == "models of kind gpt2 are not covered"
    assert "window of 128 tokens" in (uncovered(make("mistral"), 129) or "")
    model = make("llama")
    model.config.rope_parameters = {"rope_type": "dynamic"}
    assert "type dynamic" in (uncovered(model, 10) or "")


def test_sampling_follows_the_chances_within_the_nucleus():
    logits = torch.tensor([[0.1, 0.5, 0.4]]).log()
    sampling = SamplingSpec(temperature=1.0)
    picked = [int(pick(logits, torch.tensor([chance]), sampling)) for chance in (0.0, 0.49, 0.51, 0.89, 0.91, 0.999)]
    assert picked == [1, 1, 2, 2, 0, 0]
    nucleus = SamplingSpec(temperature=1.0, top_p=0.6)
    assert {int(pick(logits, torch.tensor([chance]), nucleus)) for chance in (0.0, 0.5, 0.6, 0.9999)} == {1, 2}
    certain = SamplingSpec(temperature=1.0, top_p=0.1)
    assert int(pick(logits, torch.tensor([0.9999]), certain)) == 1
