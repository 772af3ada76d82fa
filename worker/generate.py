"""Answers from a model, in batches."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from core.errors import TrainingError
from core.specs import SamplingSpec
from worker import pulse
from worker.answer import Answer
from worker.stopping import End, StopRules

#: Answers at once. A small model on a GPU waits for launches, so more answers at once cost nothing; two CPU cores are
#: busy with 16, and longer batches would wait for their longest answer.
_MOST_ROWS = {"cuda": 256, "cpu": 16}
#: Tokens of a CPU's batch: with SmolLM2-135M in float32 some 1.5 GB of keys and values.
_CPU_TOKENS = 32_768
#: Share of the GPU's free memory that a batch may take.
_MEMORY_SHARE = 0.5


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    sampling: SamplingSpec,
    *,
    batch_size: int | None = None,
    fence: str | None = None,
    kept: Mapping[int, Answer] | None = None,
    on_batch: Callable[[list[tuple[int, Answer]]], None] = lambda _: None,
) -> list[Answer]:
    """An answer to each prompt (token ids), in the prompts' order.

    The longest prompts go first, so that memory runs out at the start if it does and estimates of the time left err
    on the safe side. ``batch_size`` caps the answers at once; None leaves it to the device. ``fence`` names a language
    whose closed code block ends an answer. ``kept`` are answers, by prompt number, that an earlier attempt gave: they
    are not asked for again, unless their batch is not whole. ``on_batch`` gets each batch's prompt numbers and answers.
    Sampling repeats under the seed on the same machine with the same prompts. Raises TrainingError, before anything is
    generated, for a prompt that is empty or leaves too little of the context.
    """
    require_room(prompts, sampling.max_tokens, int(model.config.max_position_embeddings))
    model.eval()
    # The model's own settings (Llama-2 comes with a temperature of 0.6) must not fill in what is not set here.
    model.generation_config = _settings(sampling, end_tokens(model, tokenizer), tokenizer.pad_token_id)
    rules = StopRules(tokenizer, end_tokens(model, tokenizer), sampling.max_tokens, fence=fence)
    answers = dict(kept or {})
    for batch in _batches(model, prompts, sampling.max_tokens, batch_size):
        missing = [number for number in batch if number not in answers]
        if not missing:
            continue
        # Seeded for each batch, and a batch is answered whole: where a run goes on after a kill, it draws the same.
        torch.manual_seed((sampling.seed * 1_000_003 + batch[0]) % 2**63)
        found = dict(zip(batch, _answer(model, tokenizer, rules, [prompts[number] for number in batch]), strict=True))
        answers |= {number: found[number] for number in missing}
        on_batch([(number, found[number]) for number in missing])
    return [answers[number] for number in range(len(prompts))]


def require_room(
    prompts: Sequence[list[int]], max_tokens: int, context: int, names: Sequence[str] | None = None
) -> None:
    """Raise TrainingError naming the first prompt that is empty or too long to leave ``max_tokens`` of the context."""
    for number, prompt in enumerate(prompts):
        name = names[number] if names else f"prompt {number + 1}"
        if not prompt:
            raise TrainingError(
                f"{name}: the prompt is empty. Give the model something to answer.", code="empty_prompt"
            )
        if len(prompt) + max_tokens > context:
            raise TrainingError(
                f"{name}: the prompt has {len(prompt):,} tokens; with an answer of up to {max_tokens:,} that is over "
                f"the base model's context of {context:,}. Shorten the item or ask for shorter answers.",
                param="sampling_params",
                code="context_length_exceeded",
            )


def _settings(sampling: SamplingSpec, ends: list[int], pad: int) -> GenerationConfig:
    common = GenerationConfig(
        max_new_tokens=sampling.max_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        eos_token_id=ends,
        pad_token_id=pad,
    )
    if sampling.temperature > 0:
        # transformers' own default keeps the 50 likeliest tokens; nobody asked for that.
        common.update(do_sample=True, temperature=sampling.temperature, top_p=sampling.top_p, top_k=0)
    return common


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end an answer: the tokenizer's, and those that the model names."""
    named = getattr(model.generation_config, "eos_token_id", None)
    listed = named if isinstance(named, list) else [named]
    return sorted({int(token) for token in [tokenizer.eos_token_id, *listed] if token is not None})


def _batches(
    model: PreTrainedModel, prompts: Sequence[list[int]], max_tokens: int, batch_size: int | None
) -> Iterator[list[int]]:
    """Prompt numbers, the longest first, as many at a time as the memory takes."""
    order = sorted(range(len(prompts)), key=lambda number: (-len(prompts[number]), number))
    start = 0
    while start < len(order):
        rows = _rows(model, len(prompts[order[start]]), max_tokens)
        rows = min(rows, batch_size or rows)
        yield order[start : start + rows]
        start += rows


def _rows(model: PreTrainedModel, prompt_tokens: int, max_tokens: int) -> int:
    """Answers at once for prompts of up to ``prompt_tokens``."""
    if model.device.type != "cuda":
        return max(1, min(_MOST_ROWS["cpu"], _CPU_TOKENS // (prompt_tokens + max_tokens)))
    config, size = model.config, model.dtype.itemsize
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kept = 2 * config.num_hidden_layers * config.num_key_value_heads * head * size * (prompt_tokens + max_tokens)
    passing = size * prompt_tokens * (4 * config.hidden_size + 3 * config.intermediate_size) + 4 * prompt_tokens**2
    logits = 12 * config.vocab_size
    free, _ = torch.cuda.mem_get_info(model.device)
    free += torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
    return max(1, min(_MOST_ROWS["cuda"], int(free * _MEMORY_SHARE / (kept + passing + logits))))


def _answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rules: StopRules, prompts: list[list[int]]
) -> list[Answer]:
    """Answer prompts at once; in halves where the estimate of the memory was too bold."""
    try:
        rows = _new_tokens(model, rules, prompts)
    except torch.OutOfMemoryError:
        if len(prompts) == 1:
            raise TrainingError(
                f"A prompt of {len(prompts[0]):,} tokens does not fit into the GPU's memory. Use a larger GPU or "
                "shorter items.",
                code="out_of_memory",
            ) from None
        rows = None
    if rows is None:  # outside the handler, whose traceback keeps the failed pass's tensors alive
        torch.cuda.empty_cache()
        half = len(prompts) // 2
        return _answer(model, tokenizer, rules, prompts[:half]) + _answer(model, tokenizer, rules, prompts[half:])
    # A batch that ended as a whole can be shorter than the limit only by its ends.
    ends = [rules.watch().look(row) or End(len(row), "length") for row in rows]
    return [to_answer(row, end, tokenizer) for row, end in zip(rows, ends, strict=True)]


@torch.inference_mode()
def _new_tokens(model: PreTrainedModel, rules: StopRules, prompts: list[list[int]]) -> list[list[int]] | None:
    """The tokens that follow each prompt, with whatever pads them after their end."""
    width = max(len(prompt) for prompt in prompts)
    pad = model.generation_config.pad_token_id
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    criteria = [_Beat(), *([_AtFence(rules, width, len(prompts))] if rules.fence else [])]
    made: Tensor = model.generate(input_ids=ids, attention_mask=mask, stopping_criteria=StoppingCriteriaList(criteria))
    rows: list[list[int]] = made[:, width:].tolist()
    return rows


class _Beat(StoppingCriteria):  # type: ignore[misc]  # transformers has no types
    """Keeps the pulse; ends no row."""

    def __call__(self, input_ids: Tensor, scores: Any, **more: Any) -> Tensor:
        pulse.beat()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class _AtFence(StoppingCriteria):  # type: ignore[misc]  # transformers has no types
    """Ends a row of ``generate`` as its watch says."""

    def __init__(self, rules: StopRules, width: int, rows: int) -> None:
        self._width = width
        self._watches = [rules.watch() for _ in range(rows)]

    def __call__(self, input_ids: Tensor, scores: Any, **more: Any) -> Tensor:
        rows = input_ids[:, self._width :].tolist()
        over = [watch.look(row) is not None for watch, row in zip(self._watches, rows, strict=True)]
        return torch.tensor(over, device=input_ids.device)


def to_answer(row: list[int], end: End, tokenizer: PreTrainedTokenizerBase) -> Answer:
    """An answer out of its tokens; what follows its end is left out."""
    tokens = row[: end.tokens - 1] if end.reason == "stop" else row[: end.tokens]
    text = str(tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    # A byte-level model can write NUL, which no PostgreSQL text can hold.
    return Answer(text.replace("\0", "\N{REPLACEMENT CHARACTER}"), end.tokens, end.reason)
