from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from core.errors import TrainingError
from core.specs import SamplingSpec
from worker.answer import Answer, extract_code
from worker.generate import generate, require_room

TEXTS = ["def f(x):", "import os\nimport sys\n", "a", "class Node:\n    def visit(self, node):", "return 1 if x else 2"]


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path):
    return AutoTokenizer.from_pretrained(tiny_llama)


@pytest.fixture
def model(tiny_llama: Path):
    return AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)


@pytest.fixture(scope="module")
def prompts(tokenizer):
    return [tokenizer.encode(text) for text in TEXTS]


def test_answers_of_a_batch_equal_answers_one_by_one(model, tokenizer, prompts):
    sampling = SamplingSpec(max_tokens=24)
    together = generate(model, tokenizer, prompts, sampling)
    alone = [generate(model, tokenizer, [prompt], sampling)[0] for prompt in prompts]
    assert together == alone
    assert together == generate(model, tokenizer, prompts, sampling, batch_size=2)
    assert len({answer.text for answer in together}) > 1


def test_the_answer_is_what_the_model_finds_likeliest(model, tokenizer, prompts):
    ids = torch.tensor([prompts[1]])
    for _ in range(6):
        ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    expected = tokenizer.decode(ids[0, len(prompts[1]) :], skip_special_tokens=True)
    found = generate(model, tokenizer, [prompts[1]], SamplingSpec(max_tokens=6))
    assert found == [Answer(expected, 6, "length")]


def test_an_end_token_stops_an_answer_and_not_its_neighbours(model, tokenizer, prompts):
    free = generate(model, tokenizer, prompts, SamplingSpec(max_tokens=12))
    ids = torch.tensor([prompts[0]])
    for _ in range(12):
        ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    made = ids[0, len(prompts[0]) :].tolist()
    stop = made[4]
    model.generation_config.eos_token_id = [stop, tokenizer.eos_token_id]
    ended = generate(model, tokenizer, prompts, SamplingSpec(max_tokens=12))
    place = made.index(stop)
    assert ended[0] == Answer(tokenizer.decode(made[:place]), place + 1, "stop")
    assert any(answer.finish_reason == "length" and answer in free for answer in ended[1:])


def test_the_models_own_settings_do_not_slip_in(model, tokenizer, prompts):
    plain = generate(model, tokenizer, prompts, SamplingSpec(max_tokens=8))
    model.generation_config = GenerationConfig(do_sample=True, temperature=5.0, repetition_penalty=9.0, max_length=3)
    assert generate(model, tokenizer, prompts, SamplingSpec(max_tokens=8)) == plain


def test_sampling_repeats_under_its_seed(model, tokenizer, prompts):
    def sample(seed: int) -> list[Answer]:
        return generate(model, tokenizer, prompts, SamplingSpec(max_tokens=8, temperature=1.0, top_p=0.9, seed=seed))

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def test_progress_tells_every_answer_once_the_longest_prompts_first(model, tokenizer, prompts):
    told: list[tuple[int, Answer]] = []
    sizes = []

    def note(batch: list[tuple[int, Answer]]) -> None:
        told.extend(batch)
        sizes.append(len(batch))

    found = generate(model, tokenizer, prompts, SamplingSpec(max_tokens=2), batch_size=2, on_batch=note)
    assert sizes == [2, 2, 1]
    assert [found[number] for number, _ in told] == [answer for _, answer in told]
    lengths = [len(prompts[number]) for number, _ in told]
    assert lengths == sorted(lengths, reverse=True)


def test_no_answer_holds_a_nul(model, tokenizer, prompts):
    nul = tokenizer.encode("\0")
    assert len(nul) == 1
    with torch.no_grad():  # a model that writes nothing but NUL
        model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
        model.lm_head.bias = torch.nn.Parameter(torch.zeros(model.lm_head.weight.shape[0]))
        model.lm_head.bias[nul[0]] = 1
    assert generate(model, tokenizer, prompts[:1], SamplingSpec(max_tokens=3))[0].text == "\ufffd" * 3


def test_a_batch_that_does_not_fit_is_halved(model, tokenizer, prompts, monkeypatch):
    expected = generate(model, tokenizer, prompts, SamplingSpec(max_tokens=4))
    whole = type(model).generate
    sizes = []

    def small_memory(self, input_ids, **given):
        sizes.append(len(input_ids))
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError
        return whole(self, input_ids=input_ids, **given)

    monkeypatch.setattr(type(model), "generate", small_memory)
    assert generate(model, tokenizer, prompts, SamplingSpec(max_tokens=4)) == expected
    assert sizes == [5, 2, 3, 1, 2]


def test_one_prompt_that_does_not_fit_is_named(model, tokenizer, prompts, monkeypatch):
    def no_memory(self, input_ids, **given):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(type(model), "generate", no_memory)
    with pytest.raises(TrainingError, match="does not fit into the GPU's memory"):
        generate(model, tokenizer, prompts, SamplingSpec(max_tokens=4))


def test_a_prompt_that_leaves_too_little_context_is_refused_before_anything_runs(model, tokenizer):
    told = []
    with pytest.raises(TrainingError, match=r"prompt 2: the prompt has 505 tokens.*context of 512"):
        generate(model, tokenizer, [[5], [5] * 505], SamplingSpec(max_tokens=8), on_batch=told.append)
    assert told == []
    require_room([[5] * 504], 8, 512)


def test_an_empty_prompt_is_refused_by_its_name():
    with pytest.raises(TrainingError, match="line 7: the prompt is empty"):
        require_room([[1], []], 8, 512, ["line 3", "line 7"])


CODE = "def f():\n    return 1\n"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (CODE, CODE),
        ("", ""),
        (f"```python\n{CODE}```", CODE),
        (f"```\n{CODE}```", CODE),
        (f"Sure! Here it is:\n\n```python\n{CODE}```\n\nIt returns one.", CODE),
        (f"```Python\r\n{CODE}```\r\n", CODE),
        (f"```py\n{CODE}", CODE),
        (f"```python\n{CODE.rstrip()}```", CODE),
        (f"~~~python\n{CODE}~~~\n```\nno\n```", CODE),
        (f"````python\n{CODE}```\n````", CODE + "```\n"),
        (f"```python title='a.py'\n{CODE}```", CODE),
        ("  ```python\n  def f():\n      return 1\n  ```", CODE),
        (f"```python\n{CODE}```\nOr:\n```python\nx = 2\n```", CODE),
        (f"```bash\npip install x\n```\n```python\n{CODE}```", CODE),
        ("```bash\npip install x\n```", "pip install x\n"),
        ("Use `f()` or ```f()``` inline.", "Use `f()` or ```f()``` inline."),
        ("```python\n```", ""),
        ("```python", ""),
        ("``\nx\n``", "``\nx\n``"),
        ("```python\n\n\nx = 1\n\n```", "\n\nx = 1\n\n"),
    ],
)
def test_code_is_taken_out_of_an_answer(text, code):
    assert extract_code(text) == code


def test_code_is_taken_out_of_a_hostile_answer_in_time():
    for text in ("`" * 30_000, "```" + "a" * 30_000 + "`", "```\n" * 10_000, (" " * 2_000 + "`\n") * 20):
        extract_code(text)
