"""Where an answer ends: at an end token, behind its closed code block, or at the limit; the same for every decoder."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from worker.answer import FinishReason, code_is_complete


@dataclass(frozen=True)
class End:
    """Tokens of an answer that has ended, an end token included, and why it did."""

    tokens: int
    reason: FinishReason


class StopRules:
    """What ends the answers of a run. ``fence``: the language whose closed block ends one, or None."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int], most: int, *, fence: str | None = None
    ) -> None:
        self.ends, self.most, self.fence = frozenset(ends), most, fence
        self._tokenizer = tokenizer
        self._marks, self._breaks = _fence_tokens(tokenizer) if fence else (frozenset[int](), frozenset[int]())

    def watch(self) -> "Watch":
        """Follow one answer."""
        return Watch(self)

    def has_mark(self, token: int) -> bool:
        """Whether a token has a character of a fence."""
        return token in self._marks

    def has_break(self, token: int) -> bool:
        """Whether a token has the end of a line."""
        return token in self._breaks

    def is_complete(self, tokens: list[int]) -> bool:
        """Whether these tokens close the block that counts."""
        text = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return self.fence is not None and code_is_complete(str(text), self.fence)


def _fence_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[frozenset[int], frozenset[int]]:
    """Tokens with a character of a fence, and with the end of a line, as byte-level BPE and SentencePiece write these.

    Text is decoded only where a line with the one has ended by the other: decoding 256 answers at each look would cost
    a 7B model some 7 % of its speed.
    """
    words = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    marks = [number for number, word in enumerate(words) if word and ("`" in word or "~" in word)]
    breaks = [number for number, word in enumerate(words) if word and ("Ċ" in word or "\n" in word or word == "<0x0A>")]
    return frozenset(marks), frozenset(breaks)


class Watch:
    """Follows one answer's tokens as they come; however they are cut into looks, it ends at the same one."""

    def __init__(self, rules: StopRules) -> None:
        self._rules = rules
        self._seen = 0
        self._marked = False
        self._end: End | None = None

    def look(self, made: list[int]) -> End | None:
        """The answer's end, if it lies within ``made``, which starts with what was there at the last look."""
        while self._end is None and self._seen < min(len(made), self._rules.most):
            token = made[self._seen]
            self._seen += 1
            if token in self._rules.ends:
                self._end = End(self._seen, "stop")
            elif self._closes(token, made):
                self._end = End(self._seen, "fence")
            elif self._seen == self._rules.most:
                self._end = End(self._seen, "length")
        return self._end

    def _closes(self, token: int, made: list[int]) -> bool:
        self._marked = self._marked or self._rules.has_mark(token)
        if not (self._marked and self._rules.has_break(token)):
            return False
        self._marked = False
        return self._rules.is_complete(made[: self._seen])
