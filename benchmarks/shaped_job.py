"""A training job on a model of a known shape with random weights, as the worker's programs take it."""

from pathlib import Path
from typing import Any

from benchmarks import llama7b
from core.catalogue import FolderModel
from core.specs import DataSpec, FineTuneSpec, HoneSpec, Hyperparameters, LoraSpec, TrainingSpec
from worker.protocol import TrainingInput

KINDS = ("llama-2-7b", "tiny")


def make_model(kind: str, folder: Path) -> Path:
    """The model's folder; made when it is not there yet. Llama-2-7B's takes 13.5 GB and about a minute on a GPU."""
    if not (folder / "config.json").exists():
        if kind == "tiny":
            from tests.tiny import make_tiny_llama

            return make_tiny_llama(folder)
        llama7b.make_shape(folder)
    return folder


def make_job(
    folder: Path, model: Path, *, samples: int, batch: int, length: int = 512, **training: Any
) -> TrainingInput:
    """One epoch over ``samples`` samples of the seed's lengths, cut at ``length`` tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"train-{samples}.jsonl"
    if not data.exists():
        llama7b.write_samples(data, samples)
    spec = FineTuneSpec(
        model="base",
        training_file="file-train",
        seed=1,
        hyperparameters=Hyperparameters(batch_size=batch, n_epochs=1),
        hone=HoneSpec(
            lora=LoraSpec(),
            training=TrainingSpec(save_steps=1_000_000, eval_steps=1_000_000, **training),
            data=DataSpec(max_seq_length=length, prompt_template="none"),
        ),
    )
    return TrainingInput(
        job_id="ftjob-benchmark",
        fine_tuned_model="ft:base:hone::benchmark",
        spec=spec,
        base_model=FolderModel(source="folder", path=model),
        cache=folder / "cache",
        train_file=data,
    )
