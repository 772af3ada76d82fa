"""Specs: what was asked for, frozen. The one place that says each option's name, bounds, default and reason.

A request's ``"auto"`` stays in the spec; ``core.resolve`` replaces it when the worker knows the data and the machine.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Auto = Literal["auto"]
PromptTemplate = Literal["chat", "llama2", "alpaca", "none"]
Precision = Literal["float32", "bfloat16", "float16", "fp8"]
Optimizer = Literal["adamw_torch_fused", "adamw_torch", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit"]
Language = Literal["c", "c_sharp", "cpp", "go", "java", "javascript", "php", "python", "ruby", "rust", "typescript"]
ScorerName = Literal["hone", "package"]
StringOperation = Literal["eq", "ne", "like", "ilike"]
SimilarityMetric = Literal[
    "fuzzy_match", "bleu", "gleu", "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l"
]

LinearLayer = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
#: The linear layers of a Llama block, in the order of its forward pass.
LINEAR_LAYERS: tuple[LinearLayer, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Spec(BaseModel):
    """A frozen model that refuses fields it does not know, infinities and NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LoraSpec(Spec):
    """The adapter (arXiv 2106.09685)."""

    r: int = Field(16, ge=1, le=256, description="Rank. 16 on every linear layer matches full tuning on small data.")
    alpha: int = Field(32, ge=1, le=1024, description="Scale: the update is multiplied by alpha / r; twice r is usual.")
    dropout: float = Field(
        0.0, ge=0, le=0.9, description="Dropout on the adapter's input. 0: one epoch seldom overfits."
    )
    target_modules: Literal["all-linear"] | Annotated[tuple[LinearLayer, ...], Field(min_length=1)] = Field(
        "all-linear", description="Layers that get an adapter. All of them: QLoRA (arXiv 2305.14314) needs it."
    )


class QuantizationSpec(Spec):
    """How the frozen base is kept (QLoRA, arXiv 2305.14314). Blocks have 64 weights."""

    type: Literal["nf4", "fp4", "none"] = Field("nf4", description="4-bit NormalFloat; `none` keeps 16 or 32 bits.")
    double_quantization: bool = Field(
        True, description="Quantize the blocks' constants to 8 bits: 0.127 instead of 0.5 bit a parameter."
    )


class TrainingSpec(Spec):
    """The optimization, beyond OpenAI's own hyperparameters."""

    learning_rate: Auto | Annotated[float, Field(gt=0, le=1)] = Field(
        "auto", description="Auto: from the model's width (see core.resolve), times the multiplier."
    )
    lr_scheduler: Literal["cosine", "linear", "constant"] = Field("cosine", description="Shape after the warm-up.")
    warmup_steps: Auto | Annotated[int, Field(ge=0, le=10_000)] = Field(
        "auto", description="Auto: 3 % of the steps, at most 10: adapters start at zero and need little."
    )
    optimizer: Optimizer = Field(
        "adamw_torch_fused", description="Adapter states are small; paged optimizers are for cards that are full."
    )
    weight_decay: float = Field(0.0, ge=0, le=1, description="0: low rank regularizes enough.")
    max_grad_norm: float = Field(1.0, gt=0, le=1000, description="Gradients are clipped to this norm.")
    precision: Auto | Precision = Field(
        "auto",
        description="Compute type. Auto: bfloat16 where the processor or GPU has it, else float32. `fp8` multiplies by "
        "the frozen base in 8 bits, on Hopper GPUs (decision 0025).",
    )
    gradient_checkpointing: Auto | bool = Field(
        "auto", description="Recompute activations to save memory. Auto: only where the activations would not fit."
    )
    microbatch_size: Auto | Annotated[int, Field(ge=1, le=256)] = Field(
        "auto", description="Samples in one forward pass; gradients accumulate up to batch_size."
    )
    fast_path: bool = Field(
        True,
        description="Train by Hone's own blocks where they cover the model (decision 0008); same loss, faster.",
    )
    gpus: int = Field(
        1, ge=1, le=16, description="GPUs of one machine that share each step's samples; same loss, sooner."
    )
    max_steps: int | None = Field(None, ge=1, le=1_000_000, description="Stop after this many optimizer steps.")
    eval_steps: Auto | Annotated[int, Field(ge=1)] = Field(
        "auto", description="Validation every N steps. Auto: 10 times."
    )
    save_steps: Auto | Annotated[int, Field(ge=1)] = Field(
        "auto", description="Checkpoint every N steps. Auto: 10 times."
    )


class DataSpec(Spec):
    """How samples become tokens."""

    prompt_template: Auto | PromptTemplate = Field(
        "auto", description="Auto: the model's own chat template, else llama2 for Llama-2, else alpaca."
    )
    system_prompt: str | None = Field(
        None, max_length=8192, description="Put before samples that have none of their own."
    )
    max_seq_length: Auto | Annotated[int, Field(ge=16, le=131_072)] = Field(
        "auto", description="Tokens; longer samples are cut. Auto: the 90th percentile rounded up to 64."
    )
    validation_fraction: float = Field(
        0.01, ge=0, le=0.5, description="Share held out when no validation file is given; at least one sample."
    )


class EvaluationDuringTrainingSpec(Spec):
    """CodeBLEU while training, which checkpoint becomes the model, and when to stop early."""

    codebleu_steps: Literal["off"] | Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        "off",
        description="CodeBLEU of validation answers, and their loss, every N steps. Off: generating takes time.",
    )
    codebleu_samples: int = Field(
        32, ge=1, le=1000, description="How many validation samples are answered: the first ones, always the same."
    )
    codebleu_max_tokens: int = Field(256, ge=1, le=4096, description="Longest of these answers, in tokens.")
    codebleu_lang: Language = Field("python", description="What the answers are written in.")
    keep: Literal["last", "best_valid_loss", "best_codebleu"] = Field(
        "last", description="The step whose adapter is the result. Last: one epoch seldom overfits."
    )
    early_stopping: Literal["off", "valid_loss", "codebleu"] = Field(
        "off",
        description="Stop when this has not improved for `patience` evaluations. Off: all steps are done.",
    )
    patience: int = Field(3, ge=1, le=1000, description="Evaluations in a row without improvement before it stops.")

    @property
    def needs_validation(self) -> str | None:
        """The option that needs validation data, or None."""
        if self.codebleu_steps != "off":
            return "codebleu_steps"
        return "keep" if self.keep != "last" else "early_stopping" if self.early_stopping != "off" else None

    @model_validator(mode="after")
    def _codebleu_is_measured(self) -> "EvaluationDuringTrainingSpec":
        for name, wanted in (("keep", "best_codebleu"), ("early_stopping", "codebleu")):
            if getattr(self, name) == wanted and self.codebleu_steps == "off":
                raise ValueError(f"{name} '{wanted}' needs codebleu_steps: say how often CodeBLEU is measured")
        return self


class HoneSpec(Spec):
    """The object ``hone`` of a request: everything beyond OpenAI's fields."""

    lora: LoraSpec = LoraSpec()
    quantization: QuantizationSpec = QuantizationSpec()
    training: TrainingSpec = TrainingSpec()
    data: DataSpec = DataSpec()
    evaluation: EvaluationDuringTrainingSpec = EvaluationDuringTrainingSpec()


class Hyperparameters(Spec):
    """OpenAI's hyperparameters of supervised fine-tuning."""

    batch_size: Auto | Annotated[int, Field(ge=1, le=256)] = Field("auto", description="Samples an optimizer step.")
    learning_rate_multiplier: Auto | Annotated[float, Field(gt=0, le=100)] = Field("auto", description="Auto: 1.")
    n_epochs: Auto | Annotated[int, Field(ge=1, le=50)] = Field("auto", description="Passes over the training data.")


class DpoSpec(Spec):
    """What preference tuning by DPO (arXiv 2305.18290) takes beside the hyperparameters."""

    beta: Auto | Annotated[float, Field(gt=0, le=2)] = Field(
        "auto", description="How strongly the model is held to where it started. Auto: 0.1, as in the paper."
    )


# A name that W&B takes: it becomes a part of URLs.
WandbName = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^/\\#?%:]+$")]
WandbTag = Annotated[str, Field(min_length=1, max_length=64)]


class WandbSpec(Spec):
    """OpenAI's integration with Weights & Biases: where a job's figures go. The key is the operator's."""

    project: WandbName
    name: str | None = Field(None, min_length=1, max_length=128, description="Of the run; unset: the job's id.")
    entity: WandbName | None = Field(None, description="Team or user; unset: the key's own.")
    tags: tuple[WandbTag, ...] = Field((), max_length=64)


class FineTuneSpec(Spec):
    """A fine-tune job, as asked for; ``dpo`` is there when its method is dpo, ``wandb`` when W&B is told."""

    model: str
    training_file: str
    validation_file: str | None = None
    seed: int = Field(42, ge=0, le=2_147_483_647)
    suffix: str | None = Field(None, min_length=1, max_length=64)
    hyperparameters: Hyperparameters = Hyperparameters()
    dpo: DpoSpec | None = None
    wandb: WandbSpec | None = None
    hone: HoneSpec = HoneSpec()


class CodeBleuCriterion(Spec):
    """Score generated code against a reference by CodeBLEU (arXiv 2009.10297)."""

    type: Literal["code_bleu"]
    name: str = Field(min_length=1, max_length=256)
    input: str = Field(description="Template of the candidate, such as {{sample.output_text}}.")
    reference: str = Field(description="Template of the reference, such as {{item.completion}}.")
    lang: Language = "python"
    scorer: ScorerName = Field(
        "hone", description="Hone's own scorer, or the package `codebleu` 0.7.0, which knows Python only here."
    )
    weights: tuple[float, float, float, float] = Field(
        (0.25, 0.25, 0.25, 0.25), description="Of n-gram, weighted n-gram, syntax and dataflow match; they sum to 1."
    )
    pass_threshold: float = Field(0.5, ge=0, le=1, description="A sample passes from this score on.")

    @model_validator(mode="after")
    def _weights_sum_to_one(self) -> "CodeBleuCriterion":
        if any(weight < 0 for weight in self.weights) or abs(sum(self.weights) - 1) > 1e-6:
            raise ValueError("weights must be four numbers of at least 0 that sum to 1")
        return self

    @model_validator(mode="after")
    def _package_knows_the_language(self) -> "CodeBleuCriterion":
        if self.scorer == "package" and self.lang != "python":
            raise ValueError("the scorer 'package' is there for the lang 'python' only; leave scorer out")
        return self


class StringCheckCriterion(Spec):
    """Compare two texts; OpenAI's ``string_check``."""

    type: Literal["string_check"]
    name: str = Field(min_length=1, max_length=256)
    input: str = Field(description="Template of the text that is checked.")
    reference: str = Field(description="Template of the text that it is checked against.")
    operation: StringOperation = Field(description="Equal, not equal, or contains the reference; `ilike` ignores case.")


class TextSimilarityCriterion(Spec):
    """Score a text by its likeness to a reference; OpenAI's ``text_similarity`` (see core.graders)."""

    type: Literal["text_similarity"]
    name: str = Field(min_length=1, max_length=256)
    input: str = Field(description="Template of the text that is scored.")
    reference: str = Field(description="Template of the text that it is compared with.")
    evaluation_metric: SimilarityMetric
    pass_threshold: float = Field(ge=0, le=1, description="A sample passes from this score on.")


Criterion = Annotated[CodeBleuCriterion | StringCheckCriterion | TextSimilarityCriterion, Field(discriminator="type")]


class TemplateMessage(Spec):
    """One message of a run's prompt; its content may use {{item.…}}."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str


class SamplingSpec(Spec):
    """How answers are generated."""

    max_tokens: int = Field(256, ge=1, le=8192, description="Longest answer.")
    temperature: float = Field(0.0, ge=0, le=2, description="0: greedy, so that a score can be repeated.")
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int = Field(42, ge=0, le=2_147_483_647)


class EvaluationSpec(Spec):
    """An evaluation job, as asked for. Its items are in the file ``items_file``, one JSON object a line.

    ``source``: "completions" has a model answer; "jsonl" judges what the items hold, without any model.
    """

    source: Literal["completions", "jsonl"] = "completions"
    model: str = Field("", description="Empty for jsonl.")
    base_model: str = Field("", description="Catalogue name of the base that `model` is or was tuned from.")
    items_file: str
    messages: tuple[TemplateMessage, ...] = ()
    criteria: tuple[Criterion, ...] = Field(min_length=1)
    sampling: SamplingSpec = SamplingSpec()
    prompt_template: Auto | PromptTemplate = "auto"
    compare_base: bool = Field(True, description="Answer with the base as well, when `model` is a fine-tune.")
    stop_at_fence: bool = Field(
        True, description="End an answer at its first closed code block, where every criterion looks at code alone."
    )

    @model_validator(mode="after")
    def _a_model_is_asked(self) -> "EvaluationSpec":
        if self.source == "completions" and not (self.model and self.base_model and self.messages):
            raise ValueError("completions need model, base_model and messages")
        return self

    @property
    def stops_at_fence(self) -> bool:
        """Whether what follows the first code block can't change any score."""
        return self.stop_at_fence and all(criterion.type == "code_bleu" for criterion in self.criteria)
