"""CodeBLEU while training: every N steps the model answers a few validation prompts, always the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from transformers import (
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from core.errors import TrainingError
from core.specs import EvaluationDuringTrainingSpec, SamplingSpec
from worker.answer import extract_code
from worker.generate import generate
from worker.prompts import Encoded
from worker.scoring import score_pairs
from worker.trainer import QLoraTrainer

_WEIGHTS = (0.25, 0.25, 0.25, 0.25)


@dataclass(frozen=True)
class Question:
    """A validation sample's prompt, in tokens, and the answer that it should get."""

    prompt: list[int]
    reference: str


def questions(
    encoded: Sequence[Encoded], tokenizer: PreTrainedTokenizerBase, spec: EvaluationDuringTrainingSpec, context: int
) -> list[Question]:
    """The first samples whose prompt leaves room for an answer. Raises TrainingError when there is none."""
    found = []
    for one in encoded:
        prompt, answer = _split(one)
        if prompt and len(prompt) + spec.codebleu_max_tokens <= context:
            text = str(tokenizer.decode(answer, skip_special_tokens=True, clean_up_tokenization_spaces=False))
            found.append(Question(prompt, extract_code(text, spec.codebleu_lang)))
        if len(found) == spec.codebleu_samples:
            break
    if not found:
        raise TrainingError(
            f"No validation sample's prompt leaves {spec.codebleu_max_tokens:,} of the base model's {context:,} tokens "
            "for an answer, so CodeBLEU can't be measured. Give validation data, or lower "
            "hone.evaluation.codebleu_max_tokens, or leave codebleu_steps off.",
            param="hone.evaluation.codebleu_steps",
            code="no_validation_prompts",
        )
    return found


def _split(one: Encoded) -> tuple[list[int], list[int]]:
    """The tokens before the last trained stretch, and that stretch."""
    end = len(one.trained)
    while end and not one.trained[end - 1]:
        end -= 1
    start = end
    while start and one.trained[start - 1]:
        start -= 1
    return one.input_ids[:start], one.input_ids[start:end]


class CodeBleuCallback(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Measures CodeBLEU at step 0, every ``codebleu_steps``, and where ``finish`` is called."""

    def __init__(
        self,
        trainer: QLoraTrainer,
        spec: EvaluationDuringTrainingSpec,
        asked: Sequence[Question],
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        assert spec.codebleu_steps != "off"
        self._trainer, self._spec, self._asked, self._tokenizer = trainer, spec, asked, tokenizer
        self._every: int = spec.codebleu_steps

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Have the validation loss taken at these steps, too: the trainer then holds still, and both stand together."""
        if state.global_step % self._every == 0:
            control.should_evaluate = True

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure beside the validation loss; at step 0 the base model."""
        if state.global_step % self._every == 0:
            self._measure()

    def finish(self) -> None:
        """Measure the last step, unless that was done."""
        state = self._trainer.state
        if not any("eval_codebleu" in entry and entry["step"] == state.global_step for entry in state.log_history):
            self._measure()

    def _measure(self) -> None:
        """Answer and score, once for all ranks, which must decide alike; draws none of training's random numbers."""
        ranks = self._trainer.ranks
        score = torch.tensor(self._score() if ranks.rank == 0 else 0.0, dtype=torch.float64)
        score = ranks.sum(score.to(self._trainer.args.device)) if ranks.size > 1 else score
        training = self._trainer.model.training
        self._trainer.model.eval()  # by this the trainer tells validation's figures from training's
        self._trainer.log({"eval_codebleu": float(score)})
        self._trainer.model.train(training)

    def _score(self) -> float:
        """Mean CodeBLEU of greedy answers; the model is left as it was."""
        model, training = self._trainer.model, self._trainer.model.training
        base = model.get_base_model()
        settings = base.generation_config
        sampling = SamplingSpec(max_tokens=self._spec.codebleu_max_tokens)
        prompts = [question.prompt for question in self._asked]
        lang = self._spec.codebleu_lang
        with torch.random.fork_rng(), self._trainer.compute_loss_context_manager():
            answers = generate(base, self._tokenizer, prompts, sampling, fence=lang)
        base.generation_config = settings
        model.train(training)
        pairs = [
            (extract_code(answer.text, lang), question.reference)
            for answer, question in zip(answers, self._asked, strict=True)
        ]
        return fmean(score.codebleu for score in score_pairs(pairs, lang=lang, weights=_WEIGHTS))
