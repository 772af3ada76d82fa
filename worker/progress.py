"""Callbacks: what the trainer tells the worker, and how the worker stops it."""

import math
import signal
import threading
import time
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from core.errors import TrainingError
from worker.environment import peak_memory
from worker.protocol import LineWriter, Saved, Step
from worker.ranks import ALONE, Ranks
from worker.wandb_log import NOBODY, Watcher

#: Trainer's names for what ``models.tables.StepMetric`` holds.
_TRAIN_NAMES = {
    "loss": "train_loss",
    "mean_token_accuracy": "train_accuracy",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "epoch": "epoch",
}
_VALID_NAMES = {
    "eval_loss": "valid_loss",
    "eval_mean_token_accuracy": "valid_mean_token_accuracy",
    "eval_codebleu": "codebleu",
}
#: What preference tuning tells beside these, by the name that it is kept under.
_REWARD_NAMES = {
    "rewards/chosen": "reward_chosen",
    "rewards/rejected": "reward_rejected",
    "rewards/margins": "reward_margin",
    "rewards/accuracies": "reward_accuracy",
}
_TRAIN_NAMES |= _REWARD_NAMES
_VALID_NAMES |= {f"eval_{key}": f"valid_{name}" for key, name in _REWARD_NAMES.items()}
REWARDS = (*_REWARD_NAMES.values(), *(f"valid_{name}" for name in _REWARD_NAMES.values()))


class StopRequest:
    """Whether this process was asked to stop; SIGTERM asks."""

    def __init__(self) -> None:
        self._asked = threading.Event()

    def listen(self) -> None:
        """Take SIGTERM as the request."""
        signal.signal(signal.SIGTERM, lambda *_: self._asked.set())

    @property
    def asked(self) -> bool:
        """True from the request on."""
        return self._asked.is_set()


class StopCallback(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Ends training at the end of a step, with a checkpoint, once a stop was requested."""

    def __init__(self, stop: StopRequest, ranks: Ranks = ALONE) -> None:
        self._stop = stop
        self._ranks = ranks

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save and stop, all ranks after the same step."""
        if self._ranks.any(self._stop.asked):
            control.should_save = True
            control.should_training_stop = True


class ProgressCallback(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Sends each step's figures and each checkpoint to the worker, and keeps the figures for the artifacts."""

    def __init__(self, lines: LineWriter, total_steps: int, watcher: Watcher = NOBODY) -> None:
        self._lines = lines
        self._watcher = watcher
        self._total_steps = total_steps
        self._started_at = 0.0
        self._first_step = 0
        self._tokens = 0
        #: Figures by step.
        self.history: dict[int, dict[str, float]] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock; a resumed run brings the figures of the steps before."""
        self._started_at = time.monotonic()
        self._first_step, self._tokens = state.global_step, int(state.num_input_tokens_seen)
        for entry in state.log_history:
            self._keep(int(entry["step"]), entry)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Send what was logged. Raises TrainingError when the loss is no number any more."""
        logs = logs or {}
        metrics = self._keep(state.global_step, logs)
        if not metrics:
            return
        if "loss" in logs:
            tokens = int(state.num_input_tokens_seen)
            metrics["tokens_per_second"] = (tokens - self._tokens) / max(logs["seconds"], 1e-9)
            self.history[state.global_step] |= metrics
            metrics["peak_memory"] = float(peak_memory())  # of this process: no figure of the run, and in no CSV
            self._tokens = tokens
        _require_finite(state.global_step, metrics)
        self._watcher.tell(state.global_step, metrics)
        self._lines.send(
            Step(
                step=state.global_step,
                total_steps=self._total_steps,
                metrics=metrics,
                seconds_left=self._seconds_left(state.global_step),
            )
        )

    def _keep(self, step: int, logs: Mapping[str, Any]) -> dict[str, float]:
        names = _TRAIN_NAMES if "loss" in logs else _VALID_NAMES
        metrics = {name: float(logs[key]) for key, name in names.items() if key in logs}
        if metrics:
            self.history.setdefault(step, {}).update(metrics)
        return metrics

    def _seconds_left(self, step: int) -> float | None:
        done = step - self._first_step
        if done <= 0:
            return None
        return (time.monotonic() - self._started_at) / done * (self._total_steps - step)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Tell of a sealed checkpoint."""
        step = state.global_step
        self._lines.send(Saved(step=step, folder=f"checkpoint-{step}", metrics=self.history.get(step, {})))


def _require_finite(step: int, metrics: dict[str, float]) -> None:
    broken = [name for name, value in metrics.items() if not math.isfinite(value)]
    if broken:
        raise TrainingError(
            f"At step {step}, {', '.join(broken)} became infinite or not a number. Lower the learning rate or "
            "hone.training.max_grad_norm.",
            code="loss_not_finite",
        )
