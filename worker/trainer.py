"""TRL's SFTTrainer with what QLoRA needs: float32 adapters, exact validation, sealed checkpoints."""

import gc
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments
from trl import SFTConfig, SFTTrainer

from core.resolve import Resolved
from core.specs import FineTuneSpec, LoraSpec
from worker import pulse
from worker.checkpoints import write_manifest
from worker.environment import device, random_state, seed_everything, set_random_state
from worker.fast.model import FastModel
from worker.late import Figures, Mark, to_host
from worker.passes import Collate, StepCollator
from worker.ranks import ALONE, Ranks
from worker.running_plan import RunningPlan
from worker.sequences import IGNORED, collate


def add_adapter(model: PreTrainedModel, lora: LoraSpec, *, name: str, seed: int) -> PeftModel:
    """Wrap the base in a fresh LoRA adapter with float32 weights; ``name`` is written down as its base model."""
    seed_everything(seed)
    targets = lora.target_modules if lora.target_modules == "all-linear" else list(lora.target_modules)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    wrapped = get_peft_model(model, config)
    wrapped.peft_config["default"].base_model_name_or_path = name  # PEFT puts the worker's own path there
    # Else PEFT asks the hub, at each checkpoint, whether a model of that name had another vocabulary.
    wrapped.save_pretrained = partial(wrapped.save_pretrained, save_embedding_layers=False)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return wrapped


def make_config(spec: FineTuneSpec, resolved: Resolved, out: Path, *, has_validation: bool) -> SFTConfig:
    """The trainer's arguments from a job's settings; whatever is not set here is TRL's default."""
    config = SFTConfig(
        **shared_arguments(spec, resolved, out, has_validation=has_validation),
        # A batch is a whole step; worker.passes cuts it into what the memory takes at once.
        per_device_train_batch_size=resolved.batch_size,
        per_device_eval_batch_size=resolved.batch_size,
        gradient_accumulation_steps=1,
        gradient_checkpointing=resolved.gradient_checkpointing and not resolved.plan.fast_path,
        # Samples lie end to end in one row, kept apart by their positions: no token is padding. They are cut already.
        padding_free=True,
        max_length=None,
        # A loss that is no number ends the job; looking at every loss would make the GPU wait.
        logging_nan_inf_filter=False,
        accelerator_config={"non_blocking": device() == "cuda"},
    )
    use_one_gpu(config)
    return config


def use_one_gpu(config: TrainingArguments) -> None:
    """Keep Trainer from spreading a batch over all GPUs that this process sees: a rank has one."""
    config.device  # noqa: B018 - asks for the devices, and counts them
    config._n_gpu = 1


def shared_arguments(spec: FineTuneSpec, resolved: Resolved, out: Path, *, has_validation: bool) -> dict[str, Any]:
    """Arguments that do not depend on the method."""
    training = spec.hone.training
    return {
        "output_dir": str(out),
        "seed": spec.seed,
        "num_train_epochs": resolved.n_epochs,
        "max_steps": resolved.total_steps,
        "learning_rate": resolved.learning_rate,
        "lr_scheduler_type": {"constant": "constant_with_warmup"}.get(training.lr_scheduler, training.lr_scheduler),
        "warmup_steps": resolved.warmup_steps,
        "optim": resolved.optimizer,
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "bf16": resolved.precision in {"bfloat16", "fp8"},
        "fp16": resolved.precision == "float16",
        "use_cpu": device() == "cpu",
        # Fetched in this process: a resumed run then draws the same random numbers.
        "dataloader_num_workers": 0,
        "logging_steps": 1,
        "eval_strategy": "steps" if has_validation else "no",
        "eval_steps": resolved.eval_steps,
        "save_strategy": "steps",
        "save_steps": resolved.save_steps,
        "save_total_limit": 3,
        "include_num_input_tokens_seen": "all",
        "report_to": "none",
        "disable_tqdm": True,
    }


@contextmanager
def adapters_kept(model: PeftModel) -> Iterator[None]:
    """Undo what TRL's trainers do to a quantized model's adapters as they are made.

    They turn them into bfloat16, whose 8 bits of mantissa lose small updates.
    """
    masters = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    yield
    for name, parameter in model.named_parameters():
        if name in masters:
            parameter.data = masters[name]


class QLoraTrainer(SFTTrainer):  # type: ignore[misc]  # TRL has no types
    """SFTTrainer, mended where QLoRA needs it."""

    def __init__(
        self,
        model: PeftModel,
        args: SFTConfig,
        *,
        train: Dataset,
        validation: Dataset | None,
        tokenizer: PreTrainedTokenizerBase,
        callbacks: list[TrainerCallback],
        plan: RunningPlan,
        make_fast: Callable[[], FastModel | None],
        ranks: Ranks = ALONE,
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
        #: Called with a checkpoint's folder before it is sealed, to put more into it.
        self.before_seal: list[Callable[[Path], None]] = []
        self._make_fast = make_fast
        self._fast = make_fast()
        self._plan = plan
        flatten: Collate = collate if self._fast is not None else self.data_collator  # type: ignore[has-type]
        self.ranks = ranks
        self._collator = StepCollator(flatten, plan.limit, ranks.mine)
        self.data_collator = self._collator
        self._late: deque[Figures] = deque()
        self._hits: list[Tensor] = []
        self._trained: int | Tensor = 0
        self._mark = Mark(self.args.device)

    # --- A step -------------------------------------------------------------------------------------------------------

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward of a step, pass by pass; the step's loss, over all its trained tokens.

        When the memory runs out the step is done again in a smaller way: nothing was changed by then but gradients.
        """
        rows = inputs["rows"].rows
        fetched_before = inputs["rows"].tokens != self._plan.limit.tokens  # a step is fetched while another is trained
        passes = self._collator.passes(rows) if fetched_before else inputs["passes"]
        state = random_state()
        while True:
            losses, failed = [torch.zeros((), device=self.args.device)], False
            try:
                losses += [super(QLoraTrainer, self).training_step(model, one, num_items_in_batch) for one in passes]
            except torch.OutOfMemoryError:
                failed = True
            # Out of the except block, whose traceback holds the pass's tensors.
            if not self.ranks.any(failed):
                self._plan.saw(passes)
                return self._join(torch.stack(losses).sum())
            sizes = [one["input_ids"].numel() for one in passes]
            self._step_down(*self.ranks.largest([max(sizes, default=0), max(len(row["input_ids"]) for row in rows)]))
            set_random_state(state)
            passes = self._collator.passes(rows)

    def _join(self, loss: Tensor) -> Tensor:
        """The step's loss over all ranks; gradients and hits become all ranks' as well."""
        if self.ranks.size == 1:
            return loss
        self.ranks.sum_gradients(self.model.parameters())
        hits = torch.stack(self._hits).sum() if self._hits else torch.zeros_like(loss)
        # Filled on the device: a number that is copied there would wait for the whole step.
        figures = self.ranks.sum(torch.stack([loss, hits.float(), loss.new_full((), float(self._trained))]))
        if self._fast is not None:
            self._hits, self._trained = [figures[1]], figures[2]
        return figures[0]

    def _step_down(self, largest: int, longest: int) -> None:
        self.model.zero_grad(set_to_none=True)
        self._hits, self._trained = [], 0
        self._metrics["train"].clear()
        self._fast = None
        gc.collect()
        torch.cuda.empty_cache()
        self._plan.step_down(largest, longest)
        self._fast = self._make_fast()
        if self._fast is None and self._plan.resolved.gradient_checkpointing:
            self.model.enable_input_require_grads()
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean loss of the trained tokens: of the whole step's, where Trainer counted these."""
        pulse.beat()  # once a pass, of training and of validation
        if self._fast is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss, hits = self._fast.loss(inputs)
        count = len(inputs["targets"])
        self._hits.append(hits.detach())
        self._trained += count
        return loss / (count if num_items_in_batch is None else num_items_in_batch)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Nothing: Trainer would count the model's parameters anew for every batch, for a figure that none reads."""
        return 0

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        """Count without the device, which Trainer's own way waits for."""
        if self.args.world_size > 1:
            super()._track_num_input_tokens(inputs)
        else:
            self.state.num_input_tokens_seen += inputs["input_ids"].numel()

    # --- Its figures --------------------------------------------------------------------------------------------------

    def _maybe_log_save_evaluate(
        self,
        tr_loss: Tensor,
        grad_norm: Tensor | float | None,
        model: Any,
        trial: Any,
        epoch: float,
        ignore_keys_for_eval: list[str] | None,
        start_time: float,
        learning_rate: float | None = None,
    ) -> None:
        """Log the step before; all that are not logged yet, where something is to be saved, validated or ended."""
        control = self.control
        if control.should_log and self.state.global_step > self._globalstep_last_logged:  # type: ignore[has-type]  # Trainer has no types
            self._late.append(self._take(tr_loss, grad_norm, learning_rate))
            self._globalstep_last_logged = self.state.global_step
        pause = control.should_evaluate or control.should_save
        self._log_late(leave=0 if pause or control.should_training_stop else 1)
        super()._maybe_log_save_evaluate(
            tr_loss, grad_norm, model, trial, epoch, ignore_keys_for_eval, start_time, learning_rate
        )
        if pause:
            self._mark = Mark(self.args.device)

    def _take(self, tr_loss: Tensor, grad_norm: Tensor | float | None, learning_rate: float | None) -> Figures:
        """The step's figures, on their way to the host; sums begin anew."""
        values: dict[str, Any] = {"loss": tr_loss}
        if grad_norm is not None:
            values["grad_norm"] = grad_norm
        if self._hits:
            values["mean_token_accuracy"] = torch.stack(self._hits).sum() / self._trained
        for name, entries in self._metrics["train"].items():
            values[name] = sum(entries) / len(entries)
        host = to_host(values, self.args.device)
        tr_loss.zero_()
        self._metrics["train"].clear()
        self._hits, self._trained = [], 0
        began, self._mark = self._mark, Mark(self.args.device)
        return Figures(
            step=self.state.global_step,
            epoch=self.state.epoch,
            tokens=self.state.num_input_tokens_seen,
            learning_rate=self._get_learning_rate() if learning_rate is None else learning_rate,
            names=list(values),
            values=host,
            began=began,
            done=self._mark,
        )

    def _log_late(self, *, leave: int) -> None:
        """Log the oldest figures until ``leave`` are left, each as of its own step."""
        state = self.state
        now = state.global_step, state.epoch, state.num_input_tokens_seen
        while len(self._late) > leave:
            one = self._late.popleft()
            figures = one.fetch()
            self._total_loss_scalar += figures["loss"]
            state.global_step, state.epoch, state.num_input_tokens_seen = one.step, one.epoch, one.tokens
            try:
                self.log(figures)
            finally:
                state.global_step, state.epoch, state.num_input_tokens_seen = now

    def evaluate(
        self, eval_dataset: Dataset | None = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss and token accuracy over all trained tokens of the validation data.

        Trainer's own evaluation averages batches, so a batch of few tokens would weigh as much as one of many.
        """
        self.model.eval()
        tokens, loss, correct = 0, torch.zeros((), device=self.args.device), torch.zeros((), device=self.args.device)
        for one in (one for batch in self.get_eval_dataloader(eval_dataset) for one in batch["passes"]):
            inputs = self._prepare_inputs(one)
            count = len(inputs["targets"]) if self._fast else int((inputs["labels"] != IGNORED).sum())
            with torch.no_grad(), self.compute_loss_context_manager():
                loss += self.compute_loss(self.model, inputs) * count
            correct += self._hits.pop() if self._fast else self._metrics["eval"]["mean_token_accuracy"][-1] * count
            tokens += count
        self._trained = 0
        self._metrics["eval"].clear()
        loss, correct, count_of_all = self.ranks.sum(torch.stack([loss, correct, loss.new_tensor(float(tokens))]))
        tokens = int(count_of_all)
        metrics = {
            f"{metric_key_prefix}_loss": float(loss) / tokens,
            f"{metric_key_prefix}_mean_token_accuracy": float(correct) / tokens,
        }
        self.log(metrics)
        self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save as Trainer does, then seal the folder: without its manifest a checkpoint is not resumed from."""
        if self.ranks.rank:
            return
        super()._save_checkpoint(model, trial)
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        for save in self.before_seal:
            save(folder)
        write_manifest(folder, {"step": self.state.global_step})
