"""The forked side of tests/worker/dying.py; importing it takes torch and TRL along."""

import itertools
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers.models.llama import modeling_llama

from tests.worker.dying import Instant, hook, kill_forks_in_save, redirect, strike
from worker import answers, checkpoints, evaluate, preference, progress, score_plot, train, trainer
from worker.fast import block
from worker.protocol import Answered, Event, Graded, LineWriter


def run(source: str, out: str, said: str, instant: Instant | None, saves_killed: int) -> None:
    """Train as `python -m worker.train` does; the exit code is its."""
    redirect(said)
    if instant is not None:
        _PLACES[instant.where](instant)
    if saves_killed:
        kind = trainer.QLoraTrainer
        kind._save_checkpoint = kill_forks_in_save(kind._save_checkpoint, saves_killed)
    assert preference.train  # imported beforehand, in the process that is forked
    os._exit(train.main([source, out]))


def run_evaluation(source: str, out: str, said: str, instant: Instant | None) -> None:
    """Evaluate as `python -m worker.evaluate` does; the exit code is its."""
    redirect(said)
    if instant is not None:
        _PLACES[instant.where](instant)
    os._exit(evaluate.main([source, out]))


def _before_line(kind: type) -> Callable[[Instant], None]:
    """Before the line of a kind that has the instant's number, from 1 on, is told."""

    def place(instant: Instant) -> None:
        count = itertools.count(1)

        def sent(_: LineWriter, line: Any) -> None:
            if isinstance(line, kind) and next(count) == instant.step:
                strike(instant)

        hook(LineWriter, "send", sent)

    return place


def _before_scoring_ends(instant: Instant) -> None:
    """When every answer is there, and grades may be missing."""

    def sent(_: LineWriter, line: Any) -> None:
        if isinstance(line, Event) and line.message.startswith("Scoring"):
            strike(instant)

    hook(LineWriter, "send", sent)


def _before_merging(instant: Instant) -> None:
    """Between the base's answers and the tuned model's."""
    hook(answers, "merge_adapter_", lambda *_: strike(instant))


def _at_the_picture(instant: Instant) -> None:
    """When scores and items are written and the picture is not."""
    hook(score_plot, "plot_scores", lambda *_: strike(instant))


def _at_step_end(instant: Instant) -> None:
    """After the step's update, before its figures are told, its validation and its checkpoint."""

    def told(self: Any, args: Any, state: Any, *rest: Any, **more: Any) -> None:
        if state.global_step == instant.step:
            strike(instant)

    hook(progress.ProgressCallback, "on_step_end", told)


def _in_evaluation(instant: Instant) -> None:
    """At the first batch of the step's validation."""

    def computed(self: Any, *_: Any, **__: Any) -> None:
        if not self.model.training and self.state.global_step == instant.step:
            strike(instant)

    hook(trainer.QLoraTrainer, "compute_loss", computed)


def _in_save(instant: Instant) -> None:
    """When the step's checkpoint has all its files and no manifest."""

    def sealed(folder: Path, *_: Any) -> None:
        if folder.name == f"checkpoint-{instant.step}":
            strike(instant)

    hook(trainer, "write_manifest", sealed)


def _in_seal(instant: Instant) -> None:
    """When the step's manifest is written and not yet renamed into place."""

    def hashed(folder: Path) -> None:
        if folder.name == f"checkpoint-{instant.step}":
            strike(instant)

    hook(checkpoints, "hash_files", hashed)


def _loading(instant: Instant) -> None:
    """When the base model is about to be loaded."""

    def sent(_: LineWriter, line: Any) -> None:
        if isinstance(line, Event) and line.message.startswith("Loading base model"):
            strike(instant)

    hook(LineWriter, "send", sent)


def _at_the_artifacts(instant: Instant) -> None:
    """When training is over and its last checkpoint is told of."""
    hook(train, "save", lambda *_, **__: strike(instant))


def _disk_is_full(instant: Instant) -> None:
    """From the step's end on no file grows beyond 50 kB: the adapter has some 150."""

    def limit(self: Any, args: Any, state: Any, *rest: Any, **more: Any) -> None:
        if state.global_step == instant.step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    hook(progress.ProgressCallback, "on_step_end", limit)


def _out_of_memory(instant: Instant) -> None:
    """In the last part of a backward pass over more tokens than the instant's step."""
    calls = []

    def ran(block: Any, grad: torch.Tensor, *_: Any, **__: Any) -> None:
        calls.append(block)
        if len(calls) % 2 == 0 and len(grad) > instant.step:
            raise torch.OutOfMemoryError(f"CUDA out of memory. There is room for {instant.step} tokens")

    hook(block.Block, "backward", ran)


def _out_of_memory_without_recomputing(instant: Instant) -> None:
    """In each layer that keeps all it computes, while it trains."""

    def ran(layer: Any, *_: Any, **__: Any) -> None:
        if layer.training and not layer.gradient_checkpointing:
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook(modeling_llama.LlamaDecoderLayer, "forward", ran)


_PLACES = {
    "out of memory": _out_of_memory,
    "out of memory without recomputing": _out_of_memory_without_recomputing,
    "disk full": _disk_is_full,
    "step": _at_step_end,
    "evaluation": _in_evaluation,
    "save": _in_save,
    "seal": _in_seal,
    "loading": _loading,
    "artifacts": _at_the_artifacts,
    "answered": _before_line(Answered),
    "graded": _before_line(Graded),
    "scoring": _before_scoring_ends,
    "merging": _before_merging,
    "picture": _at_the_picture,
}
