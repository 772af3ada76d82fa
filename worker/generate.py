"""Answers from a model, in batches."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from core.errors import TrainingError
from core.specs import SamplingSpec
from worker import pulse

#: Answers at once. A small model on a GPU waits for launches, so more answers at once cost nothing; two CPU cores are
#: busy with 16, and longer batches would wait for their longest answer.
_MOST_ROWS = {"cuda": 256, "cpu": 16}
#: Tokens of a CPU's batch: with SmolLM2-135M in float32 some 1.5 GB of keys and values.
_CPU_TOKENS = 32_768
#: Share of the GPU's free memory that a batch may take.
_MEMORY_SHARE = 0.5


@dataclass(frozen=True)
class Answer:
    """An answer's text, without special tokens; ``tokens`` counts the end token if there is one."""

    text: str
    tokens: int
    finish_reason: Literal["stop", "length"]

    @property
    def code(self) -> str:
        """The code in the text."""
        return extract_code(self.text)


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    sampling: SamplingSpec,
    *,
    batch_size: int | None = None,
    on_batch: Callable[[list[tuple[int, Answer]]], None] = lambda _: None,
) -> list[Answer]:
    """An answer to each prompt (token ids), in the prompts' order.

    The longest prompts go first, so that memory runs out at the start if it does and estimates of the time left err
    on the safe side. ``batch_size`` caps the answers at once; None leaves it to the device. ``on_batch`` gets each
    batch's prompt numbers and answers. Sampling repeats under the seed on the same machine with the same prompts.
    Raises TrainingError, before anything is generated, for a prompt that is empty or leaves too little of the
    context.
    """
    require_room(prompts, sampling.max_tokens, int(model.config.max_position_embeddings))
    model.eval()
    # The model's own settings (Llama-2 comes with a temperature of 0.6) must not fill in what is not set here.
    model.generation_config = _settings(sampling, end_tokens(model, tokenizer), tokenizer.pad_token_id)
    torch.manual_seed(sampling.seed)
    answers: dict[int, Answer] = {}
    for batch in _batches(model, prompts, sampling.max_tokens, batch_size):
        answered = _answer(model, tokenizer, [prompts[number] for number in batch])
        answers.update(zip(batch, answered, strict=True))
        on_batch(list(zip(batch, answered, strict=True)))
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


def _answer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]) -> list[Answer]:
    """Answer prompts at once; in halves where the estimate of the memory was too bold."""
    try:
        rows = _new_tokens(model, prompts)
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
        return _answer(model, tokenizer, prompts[:half]) + _answer(model, tokenizer, prompts[half:])
    return [to_answer(row, tokenizer, model.generation_config.eos_token_id) for row in rows]


@torch.inference_mode()
def _new_tokens(model: PreTrainedModel, prompts: list[list[int]]) -> list[list[int]] | None:
    """The tokens that follow each prompt, with whatever pads them after their end."""
    width = max(len(prompt) for prompt in prompts)
    pad = model.generation_config.pad_token_id
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    made: Tensor = model.generate(input_ids=ids, attention_mask=mask, stopping_criteria=[_beat])
    rows: list[list[int]] = made[:, width:].tolist()
    return rows


def _beat(ids: Tensor, scores: Tensor) -> Tensor:
    """Called after each token; ends no row."""
    pulse.beat()
    return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)


def to_answer(row: list[int], tokenizer: PreTrainedTokenizerBase, ends: list[int]) -> Answer:
    """An answer out of its tokens; what follows the first of ``ends`` is left out."""
    end = next((place for place, token in enumerate(row) if token in ends), None)
    text = str(tokenizer.decode(row[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False))
    # A byte-level model can write NUL, which no PostgreSQL text can hold.
    text = text.replace("\0", "\N{REPLACEMENT CHARACTER}")
    return Answer(text, len(row) if end is None else end + 1, "length" if end is None else "stop")


_FENCE = re.compile(r"(?P<indent>[ \t]*)(?P<fence>`{3,}|~{3,})(?P<info>[^`]*)$")
_PYTHON_TAGS = ("", "python", "py", "python3")


def extract_code(text: str) -> str:
    """The code in an answer: its first fenced block that is Python's or untagged, else its first block, else all of it.

    A block that was not closed takes the rest: answers are cut at ``max_tokens``.
    """
    blocks = list(_fenced_blocks(text))
    if not blocks:
        return text
    return next((code for tag, code in blocks if tag in _PYTHON_TAGS), blocks[0][1])


def _fenced_blocks(text: str) -> Iterator[tuple[str, str]]:
    """Tag (lower case) and content of each fenced block."""
    lines = iter(text.splitlines(keepends=True))
    for line in lines:
        opening = _FENCE.match(line.rstrip("\r\n"))
        if opening is None:
            continue
        content = []
        for inner in lines:
            before, closed = _before_closing(inner, opening["fence"])
            content.append(before.removeprefix(opening["indent"]))
            if closed:
                break
        yield opening["info"].strip().partition(" ")[0].lower(), "".join(content)


def _before_closing(line: str, fence: str) -> tuple[str, bool]:
    """What a line has of the block, and whether it closes it: by a fence of its own or, as models do, at its end."""
    bare = line.rstrip()
    if not bare.endswith(fence):
        return line, False
    before = bare.rstrip(fence[0])
    return (before + "\n" if before.strip() else ""), True
