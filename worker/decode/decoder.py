"""Continuous batching: prompts wait, the longest first, for slots of a fixed cache; an ended answer frees its slot.

The host looks at the tokens once in a block of steps, so the GPU never waits for it in between; what a row makes after
its end, less than a block, is thrown away.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from core.errors import TrainingError
from core.specs import SamplingSpec
from worker import pulse
from worker.answer import Answer
from worker.decode.network import Network
from worker.decode.steps import Steps
from worker.generate import end_tokens, require_room, to_answer
from worker.stopping import StopRules, Watch

#: Answers at once: two CPU cores are busy with 16; on a GPU keys and values, not weights, are most of what is read
#: beyond some 256.
_MOST_SLOTS = {"cuda": 256, "cpu": 16}
#: Tokens of a CPU's cache: with SmolLM2-135M in float32 some 1.5 GB.
_CPU_TOKENS = 32_768
#: Share of the whole GPU that stays free beside the cache: for prompts' activations and other programs.
_FREE_SHARE = 0.12
#: Steps between two looks at the tokens.
_BLOCK = {"cuda": 8, "cpu": 1}
#: Tokens of prompts in one pass.
_PROMPT_TOKENS = {"cuda": 8192, "cpu": 1024}


@dataclass
class _Row:
    """An answer under way."""

    number: int
    slot: int
    prompt_tokens: int
    watch: Watch
    made: list[int] = field(default_factory=list)


def decode(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    sampling: SamplingSpec,
    *,
    slots: int | None = None,
    fence: str | None = None,
    kept: Mapping[int, Answer] | None = None,
    on_batch: Callable[[list[tuple[int, Answer]]], None] = lambda _: None,
) -> list[Answer]:
    """An answer to each prompt (token ids), in the prompts' order: ``worker.generate.generate``, faster.

    For models that ``worker.decode.network.uncovered`` lets pass. ``slots`` caps the answers at once; ``fence`` and
    ``kept`` are ``generate``'s. ``on_batch`` gets the prompt numbers and answers that ended together. When memory runs
    out, what is not answered yet goes on with half the slots. Raises TrainingError as ``generate`` does.
    """
    require_room(prompts, sampling.max_tokens, int(model.config.max_position_embeddings))
    model.eval()
    answers = dict(kept or {})
    rules = StopRules(tokenizer, end_tokens(model, tokenizer), sampling.max_tokens, fence=fence)

    def keep(ended: list[tuple[int, Answer]]) -> None:
        answers.update(ended)
        on_batch(ended)

    while left := [number for number in range(len(prompts)) if number not in answers]:
        run = _Run(model, tokenizer, prompts, left, sampling, rules, keep)
        wanted = min(slots or run.most_slots(), run.most_slots(), len(left))
        if run.fits(wanted):
            continue
        if wanted == 1:
            longest = max(len(prompts[number]) for number in left)
            raise TrainingError(
                f"A prompt of {longest:,} tokens does not fit into the GPU's memory. Use a larger GPU or shorter "
                "items.",
                code="out_of_memory",
            )
        del run
        slots = wanted // 2
        if model.device.type == "cuda":
            torch.cuda.empty_cache()
    return [answers[number] for number in range(len(prompts))]


class _Run:
    """One pass over the prompts that are left, with a fixed number of slots."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[list[int]],
        left: Sequence[int],
        sampling: SamplingSpec,
        rules: StopRules,
        keep: Callable[[list[tuple[int, Answer]]], None],
    ) -> None:
        self._network = Network(model)
        self._device = "cuda" if model.device.type == "cuda" else "cpu"
        self._tokenizer, self._prompts, self._sampling, self._keep = tokenizer, prompts, sampling, keep
        self._rules = rules
        self._waiting = sorted(left, key=lambda number: (len(prompts[number]), -number))  # the end is taken first
        longest = len(prompts[self._waiting[-1]])
        self._places = longest + sampling.max_tokens + _BLOCK[self._device]

    def most_slots(self) -> int:
        """Answers at once that the device has room for."""
        if self._device == "cpu":
            return max(1, min(_MOST_SLOTS["cpu"], _CPU_TOKENS // self._places))
        free, whole = torch.cuda.mem_get_info(self._network.device)
        free += torch.cuda.memory_reserved(self._network.device) - torch.cuda.memory_allocated(self._network.device)
        room = free - _FREE_SHARE * whole
        return max(1, min(_MOST_SLOTS["cuda"], int(room / self._network.slot_bytes(self._places)) - 1))

    def fits(self, slots: int) -> bool:
        """Answer all that wait; False when memory ran out, the answers until then being kept."""
        try:
            self._answer(slots)
        except torch.OutOfMemoryError:
            return False
        return True

    @torch.inference_mode()
    def _answer(self, slots: int) -> None:
        steps = Steps(self._network, slots, self._places, self._sampling)
        free, rows = list(range(slots)), list[_Row]()
        while self._waiting or rows:
            # Prompts in eighths of the slots: a pass over few of them costs as much as one over many.
            if self._waiting and (not rows or len(free) >= max(1, slots // 8)):
                rows += self._admit(steps, free)
            else:
                self._advance(steps, rows)
            pulse.beat()
            ended = [row for row in rows if row.watch.look(row.made) is not None]
            rows = [row for row in rows if row.watch.look(row.made) is None]
            free += [row.slot for row in ended]
            if ended:
                self._keep([(row.number, self._to_answer(row)) for row in ended])

    def _admit(self, steps: Steps, free: list[int]) -> list[_Row]:
        rows, tokens = list[_Row](), 0
        while self._waiting and free and (not rows or tokens < _PROMPT_TOKENS[self._device]):
            number = self._waiting.pop()
            rows.append(_Row(number, free.pop(), len(self._prompts[number]), self._rules.watch()))
            tokens += rows[-1].prompt_tokens
        prompts = [self._prompts[row.number] for row in rows]
        first = steps.read(prompts, [row.number for row in rows], [row.slot for row in rows])
        for row, token in zip(rows, first, strict=True):
            row.made.append(token)
        return rows

    def _advance(self, steps: Steps, rows: list[_Row]) -> None:
        places = [row.prompt_tokens + len(row.made) - 1 for row in rows]
        made = steps.run([row.made[-1] for row in rows], [row.slot for row in rows], places, _BLOCK[self._device])
        for row, tokens in zip(rows, made, strict=True):
            row.made += tokens

    def _to_answer(self, row: _Row) -> Answer:
        end = row.watch.look(row.made)
        assert end is not None  # only rows that have ended are asked for
        return to_answer(row.made, end, self._tokenizer)
