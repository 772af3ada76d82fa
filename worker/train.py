"""QLoRA fine-tuning, start to end, in one process: from a dataset and a base model to an adapter.

    python -m worker.train INPUT.json OUT/

INPUT.json is a ``worker.protocol.TrainingInput``. Progress goes to standard output as JSON lines; OUT/ receives
checkpoints and, at the end, ``artifacts/`` with ``step_metrics.csv`` and ``adapter.zip``. Nothing else is needed: no
Celery, no database.
"""

import logging
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from core.disk import disk_full
from core.errors import HoneError
from core.resolve import Resolved, resolve
from core.shape import ModelShape
from core.specs import FineTuneSpec
from worker.artifacts import save
from worker.base_models import FRESH, Bases, load_config, load_tokenizer
from worker.checkpoints import checkpoint_step
from worker.clock import Clock
from worker.environment import available_memory, forget_peak_memory, peak_memory
from worker.fast.model import FastModel, uncovered, uncovered_kind
from worker.progress import ProgressCallback, StopCallback, StopRequest
from worker.protocol import Done, Event, ExitCode, Failed, LineWriter, Started, TrainingInput, take_stdout
from worker.ranks import ALONE, Ranks, gathered
from worker.running_plan import RunningPlan
from worker.selection import restore, watch
from worker.sequences import Sequences, encode, hold_out, length_report, read_file, to_dataset
from worker.start import adapt_base, choose_template, gather_facts, make_ready
from worker.trainer import QLoraTrainer, make_config
from worker.wandb_log import NOBODY, Watcher, watching


@dataclass(frozen=True)
class Prepared:
    """The data and the settings, before the base model is loaded."""

    tokenizer: PreTrainedTokenizerBase
    sequences: Sequences
    train: Dataset
    validation: Dataset | None
    resolved: Resolved
    shape: ModelShape
    dataset_report: dict[str, Any]


def prepare(job: TrainingInput, ranks: Ranks = ALONE) -> Prepared:
    """Read and encode the samples, settle every "auto", cut. Raises HoneError when the data can't be trained on."""
    spec = job.spec
    tokenizer = load_tokenizer(job.base_model, job.cache)
    config = load_config(job.base_model, job.cache)
    template = choose_template(job, tokenizer)

    def encoded(path: Path) -> Any:
        return encode(read_file(path, job.max_line_bytes), template, tokenizer, spec.hone.data.system_prompt)

    if job.validation_file is not None:
        sequences = Sequences(encoded(job.train_file), encoded(job.validation_file))
    else:
        sequences = hold_out(encoded(job.train_file), spec.hone.data.validation_fraction, spec.seed)
    facts = gather_facts(
        sequences.lengths,
        config,
        template,
        memory=-ranks.largest([-available_memory()])[0],
        fast_path=uncovered_kind(config) is None,
    )
    resolved = resolve(spec, facts, job.plan)
    train = to_dataset(sequences.train, resolved.max_seq_length)
    validation = to_dataset(sequences.validation, resolved.max_seq_length) if sequences.validation else None
    report = length_report(sequences, train, validation, resolved.max_seq_length)
    return Prepared(tokenizer, sequences, train, validation, resolved, facts.shape, report)


def train(
    job: TrainingInput,
    out: Path,
    lines: LineWriter,
    stop: StopRequest,
    bases: Bases = FRESH,
    ranks: Ranks = ALONE,
    watcher: Watcher = NOBODY,
) -> ExitCode:
    """Run the job; the exit code says how it ended. Raises HoneError for what trying again would not mend."""
    clock = Clock()

    # 1. The data, and the settings that follow from it and from the GPU's free memory.
    if not make_ready(job, lines, stop, clock):
        return ExitCode.STOPPED
    data = prepare(job, ranks)
    resolved = data.resolved

    # 2. The base model in 4 bits, and a fresh adapter in float32.
    if stop.asked:
        return ExitCode.STOPPED
    adapted = adapt_base(job, resolved, bases, lines, clock)
    model, report = adapted.model, {**adapted.report, "dataset": data.dataset_report}

    # 3. The trainer, on the fast path where it covers the model.
    plan = RunningPlan(job.spec, data.shape, resolved, lines)
    warn_if_uncovered(model, job.spec, resolved, lines)
    progress = ProgressCallback(lines, resolved.total_steps, watcher)
    trainer = QLoraTrainer(
        model,
        make_config(job.spec, resolved, out, has_validation=data.validation is not None),
        train=data.train,
        validation=data.validation,
        tokenizer=data.tokenizer,
        callbacks=[progress, StopCallback(stop, ranks)],
        plan=plan,
        make_fast=partial(fast_model, model, plan),
        ranks=ranks,
    )
    forget_peak_memory()
    resume_step = checkpoint_step(job.resume_from)
    selection, codebleu = watch(trainer, job.spec.hone.evaluation, data.sequences.validation, lines, job.resume_from)
    lines.send(Started(resolved=resolved, report=report, step=resume_step))
    if data.validation is not None and not resume_step:
        trainer.evaluate()  # step 0: the base model's own loss

    # 4. Training, from the start or from a checkpoint.
    if job.resume_from and (resume_step >= resolved.total_steps or selection.has_stopped_before(job.resume_from)):
        restore(trainer, job.resume_from)  # the attempt before had nothing left but the artifacts
    else:
        trainer.train(resume_from_checkpoint=str(job.resume_from) if job.resume_from else None)
    last = trainer.state.global_step
    if last < resolved.total_steps and not selection.has_stopped(trainer.state.log_history):
        return ExitCode.STOPPED
    if data.validation is not None and "valid_loss" not in progress.history[last]:
        trainer.evaluate()
    if ranks.rank:
        return ExitCode.DONE
    if codebleu is not None:
        codebleu.finish()
    kept_step = selection.apply(model, trainer.state)

    # 5. The artifacts.
    report["run"] = {
        **clock.report(warm=adapted.warm),
        "peak_memory": peak_memory(),
        "memory": plan.report(peak_memory()),
        "trained_tokens": int(trainer.state.num_input_tokens_seen),
        "last_step": last,
        "kept_step": kept_step,
    }
    save(
        job,
        out / "artifacts",
        resolved=plan.resolved,
        model=model,
        tokenizer=data.tokenizer,
        history=progress.history,
        lengths=data.sequences.lengths,
        report=report,
    )
    watcher.finish()
    lines.send(Done(report=report, trained_tokens=report["run"]["trained_tokens"]))
    return ExitCode.DONE


def warn_if_uncovered(model: PeftModel, spec: FineTuneSpec, resolved: Resolved, lines: LineWriter) -> None:
    """Tell why a model that should be on the fast path is not, or not in 8 bits."""
    if spec.hone.training.precision == "fp8" != resolved.precision:
        why = resolved.reasons["training.precision"]
        lines.send(Event(message=f"Training in {resolved.precision}: {why}", level="warn"))
    if resolved.plan.fast_path or not spec.hone.training.fast_path:
        return
    reason = uncovered(model) or f"{resolved.precision} on this device is not covered"
    lines.send(Event(message=f"Training without the fast path: {reason}", level="warn"))


def fast_model(model: PeftModel, plan: RunningPlan) -> FastModel | None:
    """The model on the fast path as the plan has it now; None where it is not covered."""
    now = plan.resolved.plan
    if not now.fast_path:
        return None
    fp8 = plan.resolved.precision == "fp8"
    return FastModel(model, keep=now.keep_counts.by_block(), resident=now.resident and not fp8, fp8=fp8)


def main(arguments: list[str]) -> ExitCode:
    """Run the job that the command line names."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    stop = StopRequest()
    stop.listen()
    return run(Path(arguments[0]), Path(arguments[1]), take_stdout(), stop)


def run(source: Path, out: Path, lines: LineWriter, stop: StopRequest, bases: Bases = FRESH) -> ExitCode:
    """Run the job of an input file; every way to end has its exit code."""
    out.mkdir(parents=True, exist_ok=True)
    try:
        job = TrainingInput.model_validate_json(source.read_bytes())
        with watching(job, source, out, lines) as watcher:
            if job.spec.dpo is not None:
                from worker import preference  # noqa: PLC0415 - TRL's part for it is loaded only where it is needed

                return preference.train(job, out, lines, stop, bases, watcher)
            with gathered(job.spec.hone.training.gpus, source, out) as ranks:
                return train(job, out, lines, stop, bases, ranks, watcher)
    except Exception as error:
        told = error if isinstance(error, HoneError) else disk_full(error)
        if told is None:
            raise
        lines.send(Failed(code=told.code or told.type, message=told.message, param=told.param))
        with suppress(OSError):  # the log is on the disk that may be full
            traceback.print_exc()
        return ExitCode.FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
