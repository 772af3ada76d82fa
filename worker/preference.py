"""Preference tuning, start to end: DPO (arXiv 2305.18290) on pairs of answers, with QLoRA.

The twin of ``worker.train`` for jobs whose method is dpo; it is started by it. What both do before they have a trainer
is ``worker.start``'s.
"""

import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedTokenizerBase, TrainerCallback
from trl import DPOConfig, DPOTrainer

from core.dataset import Sample
from core.errors import TrainingError
from core.resolve import Resolved, resolve
from core.specs import FineTuneSpec, PromptTemplate
from worker import pulse
from worker.artifacts import save
from worker.base_models import Bases, load_config, load_tokenizer
from worker.checkpoints import checkpoint_step, write_manifest
from worker.clock import Clock
from worker.environment import available_memory, forget_peak_memory, peak_memory
from worker.progress import ProgressCallback, StopCallback, StopRequest
from worker.prompts import encode_samples
from worker.protocol import Done, ExitCode, LineWriter, Started, TrainingInput
from worker.sequences import read_file
from worker.start import adapt_base, choose_template, gather_facts, make_ready
from worker.trainer import adapters_kept, shared_arguments, use_one_gpu
from worker.wandb_log import NOBODY, Watcher

#: TRL's figures of a batch that are kept, each a mean over its pairs.
_FIGURES = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "mean_token_accuracy")


@dataclass(frozen=True)
class Pair:
    """A prompt and two answers to it, in tokens."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    @property
    def length(self) -> int:
        """Tokens of the longer of its two sequences: what a row of a batch is padded to at least."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


@dataclass(frozen=True)
class Prepared:
    """The pairs, cut, and the settings."""

    tokenizer: PreTrainedTokenizerBase
    train: Dataset
    validation: Dataset | None
    lengths: list[int]
    resolved: Resolved
    report: dict[str, Any]


def encode_pairs(
    samples: Sequence[Sample], template: PromptTemplate, tokenizer: PreTrainedTokenizerBase, system_prompt: str | None
) -> list[Pair]:
    """Each sample's two conversations as tokens. Raises TrainingError when the samples are no preferences."""
    conversations = [one for sample in samples for one in (sample, _other(sample))]
    encoded = encode_samples(conversations, template, tokenizer, system_prompt)
    pairs = []
    for chosen, rejected in zip(encoded, encoded, strict=True):  # two at a time
        start = chosen.trained.index(True)
        pairs.append(Pair(chosen.input_ids[:start], chosen.input_ids[start:], rejected.input_ids[start:]))
    return pairs


def _other(sample: Sample) -> Sample:
    """The conversation with the answer that is not preferred."""
    if sample.rejected is None:
        raise TrainingError(
            f"The file's format is '{sample.format}', and DPO needs pairs of answers: 'input', 'preferred_output' "
            "and 'non_preferred_output'.",
            code="wrong_format",
            param="training_file",
        )
    return replace(sample, messages=(*sample.messages[:-1], sample.rejected))


def to_dataset(pairs: Sequence[Pair], max_seq_length: int) -> Dataset:
    """Pairs cut on the right, as the columns that TRL's collator takes; those without room for an answer are dropped.

    Raises TrainingError when none is left.
    """
    rows = [
        {
            "prompt_ids": pair.prompt,
            "chosen_ids": pair.chosen[: max_seq_length - len(pair.prompt)],
            "rejected_ids": pair.rejected[: max_seq_length - len(pair.prompt)],
        }
        for pair in pairs
        if len(pair.prompt) < max_seq_length
    ]
    if not rows:
        raise TrainingError(
            f"No pair has room for its answers within {max_seq_length} tokens: every prompt fills the whole length. "
            "Raise hone.data.max_seq_length or shorten the prompts.",
            code="no_trained_tokens",
            param="hone.data.max_seq_length",
        )
    return Dataset.from_list(rows)


def hold_out(pairs: list[Pair], fraction: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Training and validation pairs: the same for the same seed, one to validate at least unless ``fraction`` is 0."""
    if fraction == 0 or len(pairs) < 2:
        return pairs, []
    held_out = set(random.Random(seed).sample(range(len(pairs)), max(1, round(fraction * len(pairs)))))
    parts: tuple[list[Pair], list[Pair]] = ([], [])
    for index, pair in enumerate(pairs):
        parts[index in held_out].append(pair)
    return parts


def prepare(job: TrainingInput) -> Prepared:
    """Read and encode the pairs, settle every "auto", cut. Raises HoneError when the data can't be trained on."""
    spec = job.spec
    tokenizer = load_tokenizer(job.base_model, job.cache)
    config = load_config(job.base_model, job.cache)
    template = choose_template(job, tokenizer)

    def encoded(path: Path) -> list[Pair]:
        samples = read_file(path, job.max_line_bytes)
        return encode_pairs(samples, template, tokenizer, spec.hone.data.system_prompt)

    pairs = encoded(job.train_file)
    if job.validation_file is not None:
        training, validation = pairs, encoded(job.validation_file)
    else:
        training, validation = hold_out(pairs, spec.hone.data.validation_fraction, spec.seed)
    lengths = [pair.length for pair in training]
    # The fast path's loss is the supervised one.
    facts = gather_facts(lengths, config, template, memory=available_memory(), fast_path=False)
    resolved = resolve(spec, facts, job.plan)
    train = to_dataset(training, resolved.max_seq_length)
    held = to_dataset(validation, resolved.max_seq_length) if validation else None
    report = {
        "train_samples": len(train),
        "validation_samples": len(held) if held is not None else 0,
        "tokens": {"mean": round(facts.mean_tokens, 1), "longest": facts.longest_tokens, "total": sum(lengths)},
        "max_seq_length": resolved.max_seq_length,
        "cut_samples": sum(length > resolved.max_seq_length for length in lengths),
        "dropped_samples": len(lengths) - len(train),
        "tokens_per_epoch": sum(
            2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in train
        ),
    }
    return Prepared(tokenizer, train, held, lengths, resolved, report)


def make_config(spec: FineTuneSpec, resolved: Resolved, out: Path, *, has_validation: bool) -> DPOConfig:
    """The trainer's arguments from a job's settings; whatever is not set here is TRL's default."""
    config = DPOConfig(
        **shared_arguments(spec, resolved, out, has_validation=has_validation),
        per_device_train_batch_size=resolved.microbatch_size,
        per_device_eval_batch_size=resolved.microbatch_size,
        gradient_accumulation_steps=resolved.batch_size // resolved.microbatch_size,
        gradient_checkpointing=resolved.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        beta=resolved.beta,
        max_length=None,  # they are cut already
        disable_dropout=False,  # the adapter's is the user's choice, and 0 unless chosen
    )
    use_one_gpu(config)
    return config


class PreferenceTrainer(DPOTrainer):  # type: ignore[misc]  # TRL has no types
    """DPOTrainer, mended where QLoRA needs it: float32 adapters, exact validation, sealed checkpoints.

    The reference is the base with the adapter disabled: a fresh adapter changes nothing, so that is where it starts.
    """

    def __init__(
        self,
        model: PeftModel,
        args: DPOConfig,
        *,
        train: Dataset,
        validation: Dataset | None,
        tokenizer: PreTrainedTokenizerBase,
        callbacks: list[TrainerCallback],
    ) -> None:
        with adapters_kept(model):
            super().__init__(
                model=model,
                args=args,
                train_dataset=train,
                eval_dataset=validation,
                processing_class=tokenizer,
                callbacks=callbacks,
            )
        if "ref" in model.peft_config:  # a copy of the adapter as it came, for those that were trained before
            model.delete_adapter("ref")
        self._step_began = time.monotonic()

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        """As it is: the pairs were tokenized by the job's template."""
        return dataset

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Forward and backward of a microbatch. Raises TrainingError when the memory runs out."""
        try:
            loss: torch.Tensor = super().training_step(*args, **kwargs)
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                "The GPU's memory ran out. Lower hone.training.microbatch_size or hone.data.max_seq_length, or set "
                "hone.training.gradient_checkpointing.",
                code="out_of_memory",
                param="hone.training.microbatch_size",
            ) from error
        return loss

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """DPO's loss of a microbatch."""
        pulse.beat()
        return super().compute_loss(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, and how long the step took."""
        if "loss" in logs:
            now = time.monotonic()
            logs["seconds"], self._step_began = now - self._step_began, now
        super().log(logs, start_time)

    def evaluate(
        self, eval_dataset: Dataset | None = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss, rewards and accuracies over all validation pairs, each weighing the same.

        TRL's own evaluation averages batches, so a pair of a small last batch would weigh more than others.
        """
        self.model.eval()
        sums, pairs = dict.fromkeys(("loss", *_FIGURES), 0.0), 0
        for batch in self.get_eval_dataloader(eval_dataset):
            inputs = self._prepare_inputs(batch)
            count = len(inputs["input_ids"]) // 2
            with torch.no_grad(), self.compute_loss_context_manager():
                sums["loss"] += float(self.compute_loss(self.model, inputs)) * count
            for name in _FIGURES:
                sums[name] += self._metrics["eval"][name][-1] * count
            pairs += count
        self._metrics["eval"].clear()
        metrics = {f"{metric_key_prefix}_{name}": total / pairs for name, total in sums.items()}
        self.log(metrics)
        self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._step_began = time.monotonic()
        return metrics

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save as Trainer does, then seal the folder: without its manifest a checkpoint is not resumed from."""
        super()._save_checkpoint(model, trial)
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        for inner in folder.glob("*/"):
            shutil.rmtree(inner)
        write_manifest(folder, {"step": self.state.global_step})
        self._step_began = time.monotonic()


def train(
    job: TrainingInput, out: Path, lines: LineWriter, stop: StopRequest, bases: Bases, watcher: Watcher = NOBODY
) -> ExitCode:
    """Run the job; the exit code says how it ended. Raises HoneError for what trying again would not mend."""
    clock = Clock()

    # 1. The pairs, and the settings that follow from them and from the GPU's free memory.
    if not make_ready(job, lines, stop, clock):
        return ExitCode.STOPPED
    data = prepare(job)
    resolved = data.resolved

    # 2. The base model in 4 bits, and a fresh adapter in float32.
    if stop.asked:
        return ExitCode.STOPPED
    adapted = adapt_base(job, resolved, bases, lines, clock)
    model, report = adapted.model, {**adapted.report, "dataset": data.report}

    # 3. The trainer.
    progress = ProgressCallback(lines, resolved.total_steps, watcher)
    trainer = PreferenceTrainer(
        model,
        make_config(job.spec, resolved, out, has_validation=data.validation is not None),
        train=data.train,
        validation=data.validation,
        tokenizer=data.tokenizer,
        callbacks=[progress, StopCallback(stop)],
    )
    forget_peak_memory()
    resume_step = checkpoint_step(job.resume_from)
    lines.send(Started(resolved=resolved, report=report, step=resume_step))
    if data.validation is not None and not resume_step:
        trainer.evaluate()  # step 0: no preference is learned yet

    # 4. Training, from the start or from a checkpoint.
    trainer.train(resume_from_checkpoint=str(job.resume_from) if job.resume_from else None)
    if trainer.state.global_step < resolved.total_steps:
        return ExitCode.STOPPED
    if data.validation is not None and "valid_loss" not in progress.history[resolved.total_steps]:
        trainer.evaluate()

    # 5. The artifacts.
    report["run"] = {
        **clock.report(warm=adapted.warm),
        "peak_memory": peak_memory(),
        "trained_tokens": int(trainer.state.num_input_tokens_seen),
    }
    save(
        job,
        out / "artifacts",
        resolved=resolved,
        model=model,
        tokenizer=data.tokenizer,
        history=progress.history,
        lengths=data.lengths,
        report=report,
    )
    watcher.finish()
    lines.send(Done(report=report, trained_tokens=report["run"]["trained_tokens"]))
    return ExitCode.DONE
