"""Prompts: the seed run's mistakes, each impossible here."""

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from core.dataset import Message, Sample, to_sample
from core.errors import TrainingError
from core.prompts import one_text
from worker.prompts import encode_prompt, encode_sample

TEMPLATES = ["chat", "llama2", "alpaca", "none"]
INSTRUCTION = to_sample({"instruction": "Add them", "input": "1, 2", "output": "3"}, "instruction")
CHAT = to_sample(
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "eins"},
            {"role": "user", "content": "two"},
            {"role": "assistant", "content": "zwei"},
        ]
    },
    "chat",
)


@pytest.fixture(scope="module")
def tokenizer(tiny_llama):
    return AutoTokenizer.from_pretrained(tiny_llama)


@pytest.fixture(scope="module")
def llama2_like(tokenizer):
    """A tokenizer that starts every text with a beginning token, as Llama-2's does."""
    from tokenizers.processors import TemplateProcessing

    inner = tokenizer.backend_tokenizer.__class__.from_str(tokenizer.backend_tokenizer.to_str())
    inner.add_special_tokens(["<s>", "</s>"])
    inner.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", inner.token_to_id("<s>"))])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<|endoftext|>")


def trained_text(encoded, tokenizer):
    return tokenizer.decode([token for token, keep in zip(encoded.input_ids, encoded.trained, strict=True) if keep])


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("sample", [INSTRUCTION, CHAT], ids=["instruction", "chat"])
def test_the_end_token_is_trained_after_every_answer(template, sample, tokenizer):
    encoded = encode_sample(sample, template, tokenizer)
    answers = sum(turn.trained for turn in sample.messages)
    ends = [
        keep for token, keep in zip(encoded.input_ids, encoded.trained, strict=True) if token == tokenizer.eos_token_id
    ]
    assert encoded.input_ids[-1] == tokenizer.eos_token_id
    assert sum(ends) == answers


@pytest.mark.parametrize("template", TEMPLATES)
def test_only_the_completion_counts_in_the_loss(template, tokenizer):
    assert trained_text(encode_sample(INSTRUCTION, template, tokenizer), tokenizer).strip() == "3<|im_end|>"
    assert trained_text(encode_sample(CHAT, template, tokenizer), tokenizer).replace(" ", "") == (
        "eins<|im_end|>zwei<|im_end|>"
    )


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("sample", [INSTRUCTION, CHAT], ids=["instruction", "chat"])
@pytest.mark.parametrize("system", [None, "Be kind."])
def test_an_evaluations_prompt_is_token_for_token_the_one_of_training(template, sample, system, tokenizer, llama2_like):
    for each in (tokenizer, llama2_like):
        if template == "chat" and each is llama2_like:
            continue
        prompt = encode_prompt(sample.messages[:-1], template, each, system)
        encoded = encode_sample(sample, template, each, system)
        assert encoded.input_ids[: len(prompt)] == prompt
        assert encoded.trained[len(prompt)]
        assert each.eos_token_id not in prompt[-1:]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("system", [None, "Be kind."])
def test_an_instruction_and_its_input_as_one_text_are_rendered_alike(template, system, tokenizer):
    turn = INSTRUCTION.messages[0]
    assert turn.input, "there is something to join"
    joined = Message("user", one_text(turn, template))
    apart, together = (encode_prompt((asked,), template, tokenizer, system) for asked in (turn, joined))
    assert apart == together


def test_the_beginning_token_stands_once(llama2_like):
    encoded = encode_sample(INSTRUCTION, "llama2", llama2_like)
    assert encoded.input_ids[0] == llama2_like.bos_token_id
    assert encoded.input_ids.count(llama2_like.bos_token_id) == 1
    assert encoded.trained[0] is False


def test_llama_2s_format_is_the_seed_runs(llama2_like):
    messages = (Message("system", "You write code."), *INSTRUCTION.messages)
    text = llama2_like.decode(encode_sample(Sample(messages, "instruction"), "llama2", llama2_like).input_ids)
    assert text.replace(" ", "") == (
        "<s>[INST]<<SYS>>\nYouwritecode.\n<</SYS>>\n\nInstruction:Addthem\nInput:1,2[/INST]3</s>"
    )


def test_alpaca_has_its_headings(tokenizer):
    text = tokenizer.decode(encode_sample(INSTRUCTION, "alpaca", tokenizer).input_ids)
    assert "### Instruction:\nAdd them\n\n### Input:\n1, 2\n\n### Response:\n3<|im_end|>" in text


def test_a_system_prompt_is_put_only_where_there_is_none(tokenizer):
    text = tokenizer.decode(encode_sample(INSTRUCTION, "chat", tokenizer, "Be kind.").input_ids)
    assert text.startswith("<|im_start|>system\nBe kind.<|im_end|>")
    text = tokenizer.decode(encode_sample(CHAT, "chat", tokenizer, "Be kind.").input_ids)
    assert "Be kind." not in text


def test_an_answer_of_weight_zero_is_context_only(tokenizer):
    first = Message("assistant", "eins", trained=False)
    sample = Sample((*CHAT.messages[:2], first, *CHAT.messages[3:]), "chat")
    for template in TEMPLATES:
        encoded = encode_sample(sample, template, tokenizer)
        assert "eins" in tokenizer.decode(encoded.input_ids)
        assert "eins" not in trained_text(encoded, tokenizer)


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer):
    import copy

    rewriting = copy.deepcopy(tokenizer)
    rewriting.chat_template = "{{ messages|length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(TrainingError, match="rewrites earlier turns"):
        encode_sample(CHAT, "chat", rewriting)
