"""Where answers end, in our decoder and in `generate` alike, by a tiny Llama that has learnt three answers by heart."""

import itertools
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from core.specs import SamplingSpec
from worker.answer import Answer, code_is_complete, extract_code
from worker.decode.decoder import decode
from worker.generate import generate
from worker.stopping import End, StopRules

LEARNT = {
    "<|im_start|>fenced": "Sure:\n```python\ndef f():\n    return 1\n```\nThat was it. It returns one.<|im_end|>",
    "<|im_start|>plain": "def g():\n    return 2\n<|im_end|>",
    "<|im_start|>shell": "```sh\nls\n```\nor\n~~~\nx = 1\n~~~  \n\nand more<|im_end|>",
}


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path):
    return AutoTokenizer.from_pretrained(tiny_llama)


@pytest.fixture(scope="module")
def model(tiny_llama: Path, tokenizer):
    """Trained until it answers each prompt as it should."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batches = [torch.tensor([tokenizer.encode(prompt + answer)]) for prompt, answer in LEARNT.items()]
    for _ in range(150):
        loss = sum(model(input_ids=ids, labels=ids).loss for ids in batches)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def prompts(tokenizer):
    return [tokenizer.encode(prompt) for prompt in LEARNT]


@pytest.mark.parametrize("make", [generate, decode])
def test_an_answer_ends_behind_the_code_that_counts(make, model, tokenizer, prompts):
    sampling = SamplingSpec(max_tokens=80)
    free = make(model, tokenizer, prompts, sampling)
    assert [answer.finish_reason for answer in free] == ["stop"] * 3
    assert [answer.text + "<|im_end|>" for answer in free] == list(LEARNT.values())

    found = make(model, tokenizer, prompts, sampling, fence="python")
    assert [answer.finish_reason for answer in found] == ["fence", "stop", "fence"]
    assert found[0].text == "Sure:\n```python\ndef f():\n    return 1\n```\n"
    assert found[1] == free[1]
    assert found[2].text.rstrip() == "```sh\nls\n```\nor\n~~~\nx = 1\n~~~"
    for answer, whole in zip(found, free, strict=True):
        assert whole.text.startswith(answer.text)
        assert extract_code(answer.text) == extract_code(whole.text)
        assert answer.tokens <= whole.tokens
    cut = make(model, tokenizer, prompts, SamplingSpec(max_tokens=found[0].tokens - 1), fence="python")
    assert cut[0].finish_reason == "length"


@pytest.mark.parametrize("make", [generate, decode])
def test_what_was_kept_is_not_asked_again(make, model, tokenizer, prompts):
    sampling = SamplingSpec(max_tokens=80)
    kept = {1: Answer("from before", 3, "stop")}
    told = []
    found = make(model, tokenizer, prompts, sampling, kept=kept, on_batch=told.extend)
    assert found[1] == kept[1]
    assert sorted(number for number, _ in told) == [0, 2]
    whole = make(model, tokenizer, prompts, sampling)
    assert [found[0], found[2]] == [whole[0], whole[2]]
    kept = dict(enumerate(whole))
    assert make(model, tokenizer, prompts, sampling, kept=kept, on_batch=lambda _: pytest.fail("asked")) == whole


def test_an_answer_ends_at_the_same_token_however_it_is_looked_at(tokenizer):
    text = LEARNT["<|im_start|>fenced"]
    tokens = tokenizer.encode(text)
    ends = [tokenizer.eos_token_id]
    rules = StopRules(tokenizer, ends, 200, fence="python")
    (want,) = {end.tokens for end in [rules.watch().look(tokens)] if end is not None}
    assert code_is_complete(tokenizer.decode(tokens[:want]))
    assert not code_is_complete(tokenizer.decode(tokens[: want - 1]))
    for sizes in ([1], [8], [3, 5], [want], [want - 1, 1], [len(tokens)]):
        watch, shown = rules.watch(), 0
        for size in itertools.cycle(sizes):
            shown += size
            if (end := watch.look(tokens[:shown])) is not None:
                break
        assert end == End(want, "fence")
    free = StopRules(tokenizer, ends, 200)
    assert free.watch().look(tokens) == End(len(tokens), "stop")
    assert StopRules(tokenizer, ends, 5).watch().look(tokens) == End(5, "length")
    assert StopRules(tokenizer, ends, len(tokens)).watch().look(tokens) == End(len(tokens), "stop")


@pytest.mark.parametrize(
    ("text", "complete"),
    [
        ("```python\nx\n```\n", True),
        ("```python\nx\n```", False),
        ("```\nx\n```\r\n", True),
        ("```python\nx```\n", True),
        ("```python\nx = '```'\n", False),
        ("```sh\nls\n```\n", False),
        ("```sh\nls\n```\n```py\nx\n```\n", True),
        ("````\n```\n", False),
        ("no code\n", False),
    ],
)
def test_a_block_counts_as_closed_by_a_whole_line(text, complete):
    assert code_is_complete(text) is complete


def test_each_language_has_its_tags():
    text = "```sh\nnpm i\n```\n```js\nlet x\n```\n"
    assert extract_code(text, "javascript") == "let x\n"
    assert extract_code(text, "python") == "npm i\n"
    assert code_is_complete(text, "javascript")
    assert extract_code("```java\nint x;\n```", "java") == "int x;\n"
