"""Which step's adapter becomes the result, and when training stops early.

Both are read off the trainer's own log, which every checkpoint carries: a run that goes on from a checkpoint decides as
the whole run did. Beside the log a checkpoint holds the best adapter so far, for its step may lie before it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from core.errors import TrainingError
from core.specs import EvaluationDuringTrainingSpec
from worker.prompts import Encoded
from worker.protocol import Event, LineWriter
from worker.step_scores import CodeBleuCallback, questions
from worker.trainer import QLoraTrainer

Measure = Literal["valid_loss", "codebleu"]
#: The trainer's name for each, and whether more is better (1) or less (-1).
_MEASURES: dict[str, tuple[str, int]] = {"valid_loss": ("eval_loss", -1), "codebleu": ("eval_codebleu", 1)}
_WORDS = {"valid_loss": "validation loss", "codebleu": "CodeBLEU"}
#: The best adapter so far, in a checkpoint's folder.
BEST = "best_adapter.safetensors"


@dataclass(frozen=True)
class Point:
    """What was measured at a step."""

    step: int
    value: float


def points(log: Sequence[Mapping[str, Any]], measure: str) -> list[Point]:
    """Each step's figure, in order; the base model's own, at step 0, is no candidate."""
    key, _ = _MEASURES[measure]
    found = {int(entry["step"]): float(entry[key]) for entry in log if key in entry and entry["step"] > 0}
    return [Point(step, value) for step, value in sorted(found.items())]


def best_of(found: Sequence[Point], measure: str) -> Point | None:
    """The best step; of equal ones the first."""
    _, sign = _MEASURES[measure]
    return max(found, key=lambda point: (sign * point.value, -point.step), default=None)


def without_improvement(found: Sequence[Point], measure: str) -> int:
    """How many measurements have come since the best one."""
    best = best_of(found, measure)
    return 0 if best is None else sum(point.step > best.step for point in found)


class Selection(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Keeps the best adapter while training, and ends it when patience has run out."""

    def __init__(self, spec: EvaluationDuringTrainingSpec, lines: LineWriter, resume_from: Path | None) -> None:
        self._lines = lines
        self._keeps = {"best_valid_loss": "valid_loss", "best_codebleu": "codebleu"}.get(spec.keep)
        self._stops_by = None if spec.early_stopping == "off" else spec.early_stopping
        self._patience = spec.patience
        self._best: dict[str, Tensor] = {}
        if resume_from is not None and (resume_from / BEST).is_file():
            self._best = load_file(resume_from / BEST)

    def has_stopped(self, log: Sequence[Mapping[str, Any]]) -> bool:
        """Whether a run with this log is over before its last step."""
        if self._stops_by is None:
            return False
        return without_improvement(points(log, self._stops_by), self._stops_by) >= self._patience

    def has_stopped_before(self, checkpoint: Path | None) -> bool:
        """Whether the run that wrote this checkpoint was over with it."""
        if checkpoint is None:
            return False
        return self.has_stopped(json.loads((checkpoint / "trainer_state.json").read_bytes())["log_history"])

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PeftModel | None = None,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Look at what was just measured."""
        logs = logs or {}
        if self._keeps is not None and _MEASURES[self._keeps][0] in logs and model is not None:
            best = best_of(points(state.log_history, self._keeps), self._keeps)
            if best is not None and best.step == state.global_step:
                self._best = {name: value.detach().cpu().clone() for name, value in _trained(model)}
        if self._stops_by is not None and _MEASURES[self._stops_by][0] in logs and self.has_stopped(state.log_history):
            if not control.should_training_stop:
                self._lines.send(Event(message=self._why_stopped(state)))
            control.should_save = control.should_training_stop = True

    def _why_stopped(self, state: TrainerState) -> str:
        assert self._stops_by is not None
        best = best_of(points(state.log_history, self._stops_by), self._stops_by)
        assert best is not None  # it has not improved on something
        return (
            f"Stopped early at step {state.global_step}: the {_WORDS[self._stops_by]} has not improved on "
            f"{best.value:.4f} of step {best.step} in {self._patience} evaluations"
        )

    def save(self, folder: Path) -> None:
        """Put the best adapter into a checkpoint that is about to be sealed."""
        if self._best:
            save_file(self._best, folder / BEST)

    def apply(self, model: PeftModel, state: TrainerState) -> int:
        """Give the model the adapter that is to be kept; returns its step."""
        best = best_of(points(state.log_history, self._keeps), self._keeps) if self._keeps else None
        if self._keeps is None or best is None or best.step == state.global_step:
            return int(state.global_step)
        with torch.no_grad():
            for name, value in _trained(model):
                value.copy_(self._best[name])
        word = _WORDS[self._keeps]
        self._lines.send(
            Event(message=f"Keeping the adapter of step {best.step}, whose {word} of {best.value:.4f} is best")
        )
        return best.step


def _trained(model: PeftModel) -> list[tuple[str, Tensor]]:
    return [(name, value) for name, value in model.named_parameters() if value.requires_grad]


def restore(trainer: QLoraTrainer, checkpoint: Path) -> None:
    """Bring trainer and model to a checkpoint without training on."""
    trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    trainer._load_from_checkpoint(str(checkpoint))  # what train() itself calls
    trainer.callback_handler.on_train_begin(trainer.args, trainer.state, trainer.control)


def watch(
    trainer: QLoraTrainer,
    spec: EvaluationDuringTrainingSpec,
    validation: Sequence[Encoded],
    lines: LineWriter,
    resume_from: Path | None,
) -> tuple[Selection, CodeBleuCallback | None]:
    """Have a trainer's figures looked at: which step to keep, when to stop, and CodeBLEU where it is asked for.

    Raises TrainingError when that needs validation data and there is none.
    """
    if (option := spec.needs_validation) is not None and trainer.eval_dataset is None:
        raise TrainingError(
            f"hone.evaluation.{option} needs validation data, and there is none. Give a validation_file, or more "
            "samples.",
            param=f"hone.evaluation.{option}",
            code="no_validation_data",
        )
    selection, codebleu = Selection(spec, lines, resume_from), None
    trainer.add_callback(selection)
    trainer.before_seal.append(selection.save)
    if spec.codebleu_steps != "off":
        tokenizer, context = trainer.processing_class, int(trainer.model.config.max_position_embeddings)
        codebleu = CodeBleuCallback(trainer, spec, questions(validation, tokenizer, spec, context), tokenizer)
        trainer.add_callback(codebleu)
    return selection, codebleu
