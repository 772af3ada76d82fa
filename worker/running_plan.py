"""The memory plan of a run that goes on, and its step down when the memory runs out."""

from collections.abc import Sequence
from typing import Any

from core.errors import TrainingError
from core.plan import predict_pass, step_down
from core.resolve import Resolved
from core.shape import ModelShape
from core.specs import FineTuneSpec
from worker.passes import Limit
from worker.protocol import Event, LineWriter, Replanned


class RunningPlan:
    """Holds the settings as they run now. ``limit`` is the same object for as long as the run lasts."""

    def __init__(self, spec: FineTuneSpec, shape: ModelShape, resolved: Resolved, lines: LineWriter) -> None:
        self.resolved = resolved
        self.limit = Limit(resolved.plan.pass_tokens, resolved.microbatch_size)
        #: Tokens of the largest pass that was trained.
        self.largest = 0
        self._spec, self._shape, self._lines = spec, shape, lines

    def saw(self, passes: Sequence[dict[str, Any]]) -> None:
        """Take note of passes that fitted."""
        self.largest = max([self.largest, *(one["input_ids"].numel() for one in passes)])

    def step_down(self, largest: int, longest: int) -> None:
        """Take the next smaller plan after a pass of ``largest`` tokens did not fit, and tell of it.

        ``longest`` is the longest sample of its step. Raises TrainingError when there is no smaller one.
        """
        smaller = step_down(
            self.resolved.plan, self._shape, self._spec, self.resolved.precision, largest=largest, longest=longest
        )
        if smaller is None:
            raise TrainingError(
                f"A sample of {longest:,} tokens alone does not fit into the memory, and everything that can be "
                "computed again is. Lower hone.data.max_seq_length.",
                code="out_of_memory",
                param="hone.data.max_seq_length",
            )
        self.resolved = self.resolved.model_copy(
            update={
                "plan": smaller,
                "pass_tokens": smaller.pass_tokens,
                "gradient_checkpointing": smaller.recomputes,
            }
        )
        self.limit.tokens = smaller.pass_tokens
        self._lines.send(Event(message=_capitalized(smaller.reasons[-1]), level="warn"))
        self._lines.send(Replanned(resolved=self.resolved))

    def report(self, measured: int) -> dict[str, Any]:
        """Predicted against measured, in bytes, for the largest pass that was trained."""
        plan = self.resolved.plan
        memory = predict_pass(plan, self._shape, self._spec, self.resolved.precision, self.largest)
        predicted = memory.allocated if plan.device == "cuda" else memory.total
        return {
            "largest_pass_tokens": self.largest,
            "predicted_peak": predicted,
            "measured_peak": measured,
            "predicted_to_measured": round(predicted / measured, 3),
            "parts": memory.model_dump(),
        }


def _capitalized(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
