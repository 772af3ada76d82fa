"""The fast path on the processor: its losses and gradients against transformers' own, sample by sample."""

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import (
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

from worker.fast.graphs import Filled, Pass, Size
from worker.fast.model import FastModel, uncovered
from worker.sequences import IGNORED, collate

SHAPE = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "tied": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True)),
    "window": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=4)),
    "biases": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
    "all biases": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, attention_bias=True)),
    "head norms": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=32)),
}


def adapted(model: torch.nn.Module, **options: object) -> PeftModel:
    """With adapters that are not zero, and biases that are not either."""
    config = LoraConfig(r=4, lora_alpha=12, task_type="CAUSAL_LM", **{"target_modules": "all-linear", **options})
    wrapped = get_peft_model(model, config)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name or "bias" in name:
            parameter.data.normal_(std=0.1)
        elif "q_norm" in name or "k_norm" in name:
            parameter.data.normal_(mean=1.0, std=0.2)
    return wrapped


def samples() -> list[dict[str, list[int]]]:
    """Three samples; of the second only the end is trained."""
    torch.manual_seed(1)
    rows = [torch.randint(0, 300, (length,)).tolist() for length in (5, 9, 3)]
    return [{"input_ids": ids, "labels": [IGNORED] * 4 + ids[4:] if len(ids) == 9 else ids} for ids in rows]


def plain(model: PeftModel) -> tuple[Tensor, int, dict[str, Tensor]]:
    """Sum of the losses, hits and gradients by transformers and autograd, each sample alone."""
    model.zero_grad()
    losses, hits = [], 0
    for row in samples():
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        labels = torch.tensor(row["labels"][1:])
        losses.append(torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum"))
        hits += int((logits.argmax(-1) == labels).sum())
    loss = torch.stack(losses).sum()
    loss.backward()
    return loss.detach(), hits, gradients(model)


def gradients(model: PeftModel) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("keep", ["all", "attention", "input", "every other", "resident"])
def test_losses_and_gradients_are_those_of_autograd_in_float64(kind: str, keep: str) -> None:
    model = adapted(MODELS[kind]()).double()
    want, want_hits, want_gradients = plain(model)
    fast = FastModel(model, resident=keep == "resident")
    if keep in {"all", "attention", "input"}:
        fast.keep(keep)
    if keep == "every other":
        fast.keep(["input", "all"])
    model.zero_grad()
    loss, hits = fast.loss(collate(samples()))
    loss.backward()
    # transformers computes norms and rotations in float32 whatever the model's type: hence 1e-6 and not 1e-12.
    torch.testing.assert_close(loss.detach(), want, rtol=1e-6, atol=0)
    assert int(hits) == want_hits
    found = gradients(model)
    assert found.keys() == want_gradients.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, want_gradients[name], rtol=1e-5, atol=1e-6)


def test_layers_without_an_adapter_pass_the_gradient_on() -> None:
    model = adapted(MODELS["llama"](), target_modules=["k_proj", "down_proj"]).double()
    _, _, want = plain(model)
    model.zero_grad()
    FastModel(model).loss(collate(samples()))[0].backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, want[name], rtol=1e-5, atol=1e-6)


def test_four_bit_weights_are_read_as_bitsandbytes_reads_them() -> None:
    model = MODELS["llama"]()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.nn.Linear) and name != "lm_head":
                packed = Linear4bit(child.in_features, child.out_features, bias=False, quant_type="nf4")
                packed.load_state_dict({"weight": child.weight.data})
                setattr(parent, name, packed.to("cpu"))
    model = adapted(model).float()
    want, _, want_gradients = plain(model)
    model.zero_grad()
    loss, _ = FastModel(model).loss(collate(samples()))
    loss.backward()
    torch.testing.assert_close(loss.detach(), want, rtol=1e-4, atol=0)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, want_gradients[name], rtol=1e-2, atol=1e-3)


def test_a_step_of_the_optimizer_reaches_the_next_pass() -> None:
    model = adapted(MODELS["llama"]()).double()
    fast = FastModel(model, resident=True)
    before, _ = fast.loss(collate(samples()))
    before.backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01).step()
    after, _ = fast.loss(collate(samples()))
    want, _, _ = plain(model)
    assert after.detach() < before.detach()
    torch.testing.assert_close(after.detach(), want, rtol=1e-6, atol=0)


def test_what_is_not_covered_is_said() -> None:
    assert uncovered(adapted(MODELS["llama"]())) is None
    assert "dropout" in (uncovered(adapted(MODELS["llama"](), lora_dropout=0.1)) or "")
    other = adapted(GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=1, n_head=2, vocab_size=300)))
    assert "gpt2" in (uncovered(other) or "")
    odd = LlamaForCausalLM(LlamaConfig(**{**SHAPE, "hidden_size": 48}))
    assert "multiples of 64" in (uncovered(adapted(odd)) or "")
    mixed = Qwen3ForCausalLM(Qwen3Config(**SHAPE, use_sliding_window=True, sliding_window=4, max_window_layers=1))
    assert "window" in (uncovered(adapted(mixed)) or "")


def four_bit(kind: str) -> PeftModel:
    """In NF4, head and embeddings but for; with adapters."""
    model = MODELS[kind]()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.nn.Linear) and name != "lm_head":
                packed = Linear4bit(
                    child.in_features, child.out_features, bias=child.bias is not None, quant_type="nf4"
                )
                packed.load_state_dict(child.state_dict())
                setattr(parent, name, packed.to("cpu"))
    return adapted(model).float()


def passed(model: PeftModel, **options: object) -> tuple[Tensor, Tensor]:
    """Loss and all gradients in one vector, by the fast path."""
    model.zero_grad()
    loss, _ = FastModel(model, **options).loss(collate(samples()))
    loss.backward()
    return loss.detach(), torch.cat([gradient.flatten() for gradient in gradients(model).values()])


@pytest.mark.parametrize("kind", ["llama", "biases", "all biases"])
def test_eight_bits_stay_near(kind: str) -> None:
    model = four_bit(kind)
    loss, gradient = passed(model)
    near_loss, near = passed(model, fp8=True)
    assert 0 < abs(near_loss - loss) < 0.01 * loss
    assert 1e-4 < torch.linalg.norm(near - gradient) / torch.linalg.norm(gradient) < 0.1


def test_what_is_trained_in_eight_bits_is_validated_in_sixteen() -> None:
    model = four_bit("llama")
    plain, fast, batch = FastModel(model), FastModel(model, fp8=True), collate(samples())
    for _ in range(2):  # before and after a pass in 8 bits
        with torch.no_grad():
            assert torch.equal(fast.loss(batch)[0], plain.loss(batch)[0])
        assert fast.loss(batch)[0] != plain.loss(batch)[0]


@pytest.mark.parametrize("kind", MODELS)
def test_a_pass_that_is_filled_up_gives_what_it_gave(kind: str) -> None:
    model = adapted(MODELS[kind]()).double()
    fast, one = FastModel(model), Pass.of(collate(samples()))
    want = fast.train(one)
    filled = Filled(Size.of(one), torch.device("cpu"))
    found = fast.train(filled.take(one))
    torch.testing.assert_close(found.loss, want.loss)
    assert found.hits == want.hits
    torch.testing.assert_close(found.of_parameters, want.of_parameters)


def test_a_filled_pass_holds_nothing_of_the_one_before() -> None:
    model = adapted(MODELS["llama"]()).double()
    fast, (long, short) = FastModel(model), (Pass.of(collate(samples()[:2])), Pass.of(collate(samples()[2:])))
    assert Size.of(long) == Size.of(short)
    filled = Filled(Size.of(long), torch.device("cpu"))
    fast.train(filled.take(long))
    found, want = fast.train(filled.take(short)), fast.train(short)
    torch.testing.assert_close(found.loss, want.loss)
    torch.testing.assert_close(found.of_parameters, want.of_parameters)


@pytest.mark.parametrize("tokens", [1, 127, 128, 129, 3300])
def test_a_size_has_room_for_one_more_token_and_sample(tokens: int) -> None:
    rows = [{"input_ids": [7] * tokens, "labels": [7] * tokens}] * 32
    size = Size.of(one := Pass.of(collate(rows)))
    assert size.tokens > one.input_ids.numel()
    assert size.samples > 32
    assert size.longest >= tokens
    assert size.trained >= len(one.targets)
