"""Training by hand: `python -m worker.train INPUT.json OUT/`, as a real process on a real tiny Llama."""

import csv
import io
import json
import math
import os
import signal
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoTokenizer

from core.catalogue import FolderModel
from core.specs import DataSpec, FineTuneSpec, HoneSpec, Hyperparameters, LoraSpec, QuantizationSpec, TrainingSpec
from worker.artifacts import CSV_COLUMNS
from worker.base_models import load_base
from worker.checkpoints import read_manifest, sha256_of
from worker.merge import densify_, merge_adapter_
from worker.protocol import Done, Event, ExitCode, Failed, LineWriter, Saved, Started, Step, TrainingInput, parse_line
from worker.running_plan import RunningPlan
from worker.sequences import encode, read_file, to_dataset
from worker.trainer import QLoraTrainer, add_adapter, make_config

TRAINING = TrainingSpec(precision="float32", microbatch_size=4, save_steps=4, eval_steps=3)
LANGUAGES = ["add", "subtract", "multiply", "divide", "raise"]


def make_job(folder: Path, model: Path, **changes) -> TrainingInput:
    """A job of 10 steps over 40 samples of different lengths."""
    rows = [
        {
            "instruction": f"{LANGUAGES[n % 5]} {n}" + " please" * (n % 7),
            "output": f"def f_{n}(x):\n    return x + {n}\n" + "    # more\n" * (n % 4),
        }
        for n in range(40)
    ]
    path = folder / "train.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    spec = FineTuneSpec(
        model="tiny",
        training_file="file-x",
        hyperparameters=Hyperparameters(n_epochs=2, batch_size=8),
        hone=HoneSpec(
            lora=changes.pop("lora", LoraSpec()),
            quantization=changes.pop("quantization", QuantizationSpec()),
            training=changes.pop("training", TRAINING),
            data=changes.pop("data", DataSpec(validation_fraction=0.1)),
        ),
    )
    values = {
        "job_id": "ftjob-test",
        "fine_tuned_model": "ft:tiny:hone::test",
        "spec": spec,
        "base_model": FolderModel(source="folder", path=model),
        "cache": folder / "cache",
        "train_file": path,
    }
    return TrainingInput(**(values | changes))


@dataclass
class Ended:
    code: int
    lines: list
    out: Path
    log: str

    def of(self, kind):
        return [line for line in self.lines if isinstance(line, kind)]

    @property
    def losses(self):
        return {line.step: line.metrics["train_loss"] for line in self.of(Step) if "train_loss" in line.metrics}


def start(job: TrainingInput, out: Path) -> subprocess.Popen:
    source = out.with_suffix(".json")
    source.write_text(job.model_dump_json())
    return subprocess.Popen(
        [sys.executable, "-m", "worker.train", str(source), str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def run(job: TrainingInput, out: Path) -> Ended:
    process = start(job, out)
    output, log = process.communicate(timeout=120)
    return Ended(process.returncode, [parse_line(line) for line in output.splitlines()], out, log)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_llama) -> Ended:
    """One whole run, shared by the tests that only look at it."""
    folder = tmp_path_factory.mktemp("trained")
    ended = run(make_job(folder, tiny_llama), folder / "out")
    assert ended.code == ExitCode.DONE, ended.log[-3000:]
    with zipfile.ZipFile(ended.out / "artifacts" / "adapter.zip") as archive:
        archive.extractall(folder / "adapter")
    return ended


def test_a_run_tells_its_settings_each_step_each_checkpoint_and_its_end(trained):
    started = trained.of(Started)[0]
    assert started.resolved.total_steps == 10
    assert started.report["dataset"]["train_samples"] == 36
    assert sorted(trained.losses) == list(range(1, 11))
    assert [line.step for line in trained.of(Saved)] == [4, 8, 10]
    assert {line.step for line in trained.of(Step) if "valid_loss" in line.metrics} == {0, 3, 6, 9, 10}
    assert isinstance(trained.lines[-1], Done)
    epoch = started.report["dataset"]["tokens_per_epoch"]
    assert trained.lines[-1].trained_tokens == 2 * epoch


def test_it_learns(trained):
    assert trained.losses[10] < trained.losses[1] - 0.1


def test_every_step_has_its_figures(trained):
    for line in trained.of(Step):
        if "train_loss" in line.metrics:
            assert set(line.metrics) == {
                "train_loss", "train_accuracy", "learning_rate", "grad_norm", "epoch", "tokens_per_second",
                "peak_memory",
            }  # fmt: skip
        assert all(math.isfinite(value) for value in line.metrics.values())


def test_the_zip_holds_everything_and_its_manifest_agrees(trained):
    adapter = trained.out.parent / "adapter"
    assert {path.name for path in adapter.iterdir()} >= {
        "adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "README.md", "step_metrics.csv",
        "loss.png", "lengths.png", "manifest.json",
    }  # fmt: skip
    manifest = read_manifest(adapter)
    assert manifest["files"]["adapter_model.safetensors"] == sha256_of(adapter / "adapter_model.safetensors")
    assert manifest["training_file_sha256"] == sha256_of(trained.out.parent / "train.jsonl")
    assert {"spec", "resolved", "base_model", "versions", "hardware", "seed"} <= set(manifest)
    assert manifest["base_model"]["fingerprint"]
    memory = manifest["run"]["memory"]
    assert memory["measured_peak"] == manifest["run"]["peak_memory"]
    assert memory["predicted_peak"] == sum(memory["parts"].values())
    assert 0 < memory["largest_pass_tokens"] <= manifest["resolved"]["pass_tokens"]
    assert manifest["resolved"]["plan"]["fits"]


def test_the_csv_has_openais_columns_first_and_a_row_a_step(trained):
    with (trained.out / "artifacts" / "step_metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert CSV_COLUMNS[:5] == ("step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy")
    assert [int(row["step"]) for row in rows] == list(range(1, 11))
    assert {int(row["step"]): float(row["train_loss"]) for row in rows} == trained.losses
    assert [row["step"] for row in rows if row["valid_loss"]] == ["3", "6", "9", "10"]


def test_the_pictures_are_pictures(trained):
    for name in ("loss.png", "lengths.png"):
        with Image.open(trained.out.parent / "adapter" / name) as picture:
            assert picture.width > 1000
            assert len(picture.convert("L").getcolors(256)) > 10


def test_peft_loads_the_adapter_onto_the_base_and_its_output_differs(trained, tiny_llama, tmp_path):
    adapter = trained.out.parent / "adapter"
    base = load_base(FolderModel(source="folder", path=tiny_llama), tmp_path, QuantizationSpec(), "float32").eval()
    ids = AutoTokenizer.from_pretrained(adapter)("add 3", return_tensors="pt").input_ids
    with torch.no_grad():
        before = base(ids).logits
        after = PeftModel.from_pretrained(base, adapter)(ids).logits
    assert not torch.allclose(before, after, atol=1e-3)
    assert {tensor.dtype for tensor in load_file(adapter / "adapter_model.safetensors").values()} == {torch.float32}


def test_a_checkpoint_is_merged_as_the_adapter_is(trained, tiny_llama):
    job = make_job(trained.out.parent, tiny_llama)

    def merged(folder):
        model = load_base(job.base_model, job.cache, QuantizationSpec(), "float32")
        densify_(model)
        merge_adapter_(model, folder)
        return model.state_dict()

    last = merged(trained.out / trained.of(Saved)[-1].folder)
    assert trained.of(Saved)[-1].step == 10
    for name, weight in merged(trained.out.parent / "adapter").items():
        assert torch.equal(last[name], weight), name


def test_no_path_of_the_worker_is_left_in_the_adapter(trained):
    adapter = trained.out.parent / "adapter"
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    for path in adapter.glob("*.json"):
        assert str(trained.out.parent) not in path.read_text(), path.name


def test_a_run_that_goes_on_from_a_checkpoint_has_the_losses_of_one_that_never_stopped(trained, tiny_llama, tmp_path):
    job = make_job(tmp_path, tiny_llama, resume_from=trained.out / "checkpoint-4")
    resumed = run(job, tmp_path / "out")
    assert resumed.code == ExitCode.DONE, resumed.log[-3000:]
    assert resumed.of(Started)[0].step == 4
    assert resumed.losses == {step: loss for step, loss in trained.losses.items() if step > 4}
    csvs = [ended.out / "artifacts" / "step_metrics.csv" for ended in (trained, resumed)]
    first, second = ([row["train_loss"] for row in csv.DictReader(path.open())] for path in csvs)
    assert first == second


@pytest.mark.parametrize("changes", [{"fast_path": False}, {"gradient_checkpointing": True}])
def test_the_fast_path_changes_no_loss(changes, trained, tiny_llama, tmp_path):
    assert not [line for line in trained.of(Event) if "fast path" in line.message]
    other = run(make_job(tmp_path, tiny_llama, training=TRAINING.model_copy(update=changes)), tmp_path / "out")
    assert other.losses == pytest.approx(trained.losses, rel=1e-4)


def test_what_the_fast_path_does_not_cover_is_said(tiny_llama, tmp_path):
    job = make_job(
        tmp_path, tiny_llama, lora=LoraSpec(dropout=0.1), training=TRAINING.model_copy(update={"max_steps": 1})
    )
    warnings = [line.message for line in run(job, tmp_path / "out").of(Event) if line.level == "warn"]
    assert warnings == ["Training without the fast path: dropout on the adapters' inputs is not covered"]


def test_a_broken_checkpoint_is_not_resumed_from(trained, tiny_llama, tmp_path):
    import shutil

    broken = shutil.copytree(trained.out / "checkpoint-4", tmp_path / "checkpoint-4")
    with (broken / "optimizer.pt").open("r+b") as file:
        file.seek(100)
        file.write(b"x")
    ended = run(make_job(tmp_path, tiny_llama, resume_from=broken), tmp_path / "out")
    assert ended.code == ExitCode.FAILED
    assert ended.of(Failed)[0].code == "checkpoint_broken"


def test_told_to_stop_it_ends_the_step_with_a_checkpoint(tiny_llama, tmp_path):
    job = make_job(tmp_path, tiny_llama, training=TRAINING.model_copy(update={"max_steps": 10_000, "save_steps": 5000}))
    job = job.model_copy(
        update={"spec": job.spec.model_copy(update={"hyperparameters": Hyperparameters(n_epochs=50, batch_size=4)})}
    )
    process = start(job, tmp_path / "out")
    lines = []
    for text in process.stdout:
        lines.append(parse_line(text))
        if isinstance(lines[-1], Step) and lines[-1].step == 3:
            process.send_signal(signal.SIGTERM)
            break
    lines += [parse_line(text) for text in process.stdout]
    assert process.wait(60) == ExitCode.STOPPED
    saved = [line for line in lines if isinstance(line, Saved)]
    assert len(saved) == 1
    assert read_manifest(tmp_path / "out" / saved[0].folder)["step"] == saved[0].step
    assert not (tmp_path / "out" / "artifacts").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"lora": LoraSpec(r=4, alpha=16, dropout=0.1, target_modules=("q_proj", "v_proj"))},
        {"quantization": QuantizationSpec(type="fp4", double_quantization=False)},
        {"quantization": QuantizationSpec(type="none")},
        {"training": TRAINING.model_copy(update={"gradient_checkpointing": True, "lr_scheduler": "linear"})},
        {
            "training": TRAINING.model_copy(
                update={"lr_scheduler": "constant", "warmup_steps": 3, "max_grad_norm": 0.01}
            )
        },
        {"data": DataSpec(prompt_template="llama2", max_seq_length=24, validation_fraction=0)},
        {"data": DataSpec(prompt_template="alpaca", system_prompt="Be brief.")},
    ],
    ids=["lora", "fp4", "unquantized", "checkpointing", "scheduler", "llama2", "alpaca"],
)
def test_each_option_is_used(changes, tiny_llama, tmp_path):
    training = changes.get("training", TRAINING).model_copy(update={"max_steps": 4})
    ended = run(make_job(tmp_path, tiny_llama, **(changes | {"training": training})), tmp_path / "out")
    assert ended.code == ExitCode.DONE, ended.log[-3000:]
    resolved, report = ended.of(Started)[0].resolved, ended.of(Started)[0].report
    rates = [line.metrics["learning_rate"] for line in ended.of(Step) if "learning_rate" in line.metrics]
    with zipfile.ZipFile(ended.out / "artifacts" / "adapter.zip") as archive:
        config = json.loads(archive.read("adapter_config.json"))
    if "lora" in changes:
        assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 16, 0.1)
        assert set(config["target_modules"]) == {"q_proj", "v_proj"}
        assert report["model"]["trainable_parameters"] == 2 * (4 * (64 + 64) + 4 * (64 + 32))
    if "training" in changes:
        asked = changes["training"]
        assert resolved.gradient_checkpointing == (asked.gradient_checkpointing is True)
        if asked.lr_scheduler == "constant":
            assert rates == pytest.approx([0, 4e-3 / 3, 8e-3 / 3, 4e-3])
        else:
            assert rates == pytest.approx([4e-3, 3e-3, 2e-3, 1e-3])
    if changes.get("data") and changes["data"].max_seq_length == 24:
        assert report["dataset"]["cut_samples"] > 0
        assert not [line for line in ended.of(Step) if "valid_loss" in line.metrics]


def test_a_job_that_no_sample_fits_fails_by_name(tiny_llama, tmp_path):
    ended = run(make_job(tmp_path, tiny_llama, data=DataSpec(max_seq_length=16)), tmp_path / "out")
    failed = ended.of(Failed)[0]
    assert (ended.code, failed.code, failed.param) == (ExitCode.FAILED, "no_trained_tokens", "hone.data.max_seq_length")


def test_validation_weighs_tokens_not_batches(tiny_llama, tmp_path):
    """The loss over all tokens, against one computed sample by sample."""
    job = make_job(tmp_path, tiny_llama)
    from worker.train import prepare

    data = prepare(job)
    base = load_base(job.base_model, job.cache, QuantizationSpec(), "float32")
    model = add_adapter(base, LoraSpec(), name="tiny", seed=1)
    args = make_config(job.spec, data.resolved, tmp_path / "out", has_validation=True)
    dataset = to_dataset(encode(read_file(job.train_file, 2**20), "chat", data.tokenizer, None)[:9], 64)
    trainer = QLoraTrainer(
        model,
        args,
        train=data.train,
        validation=dataset,
        tokenizer=data.tokenizer,
        callbacks=[],
        plan=RunningPlan(job.spec, data.shape, data.resolved, LineWriter(io.StringIO())),
        make_fast=lambda: None,
    )
    trainable = {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}
    assert trainable == {torch.float32}, "TRL's cast to bfloat16 must not stand"
    measured = trainer.evaluate()["eval_loss"]
    total, tokens = 0.0, 0
    for row in dataset:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        with torch.no_grad():
            logits = base(input_ids=ids).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="sum"))
        tokens += int((labels[0, 1:] != -100).sum())
    assert measured == pytest.approx(total / tokens, rel=1e-5)


def test_lines_refuse_what_is_not_a_number():
    with pytest.raises(ValueError, match="not JSON compliant"):
        LineWriter(io.StringIO()).send(Step(step=1, total_steps=2, metrics={"train_loss": math.nan}))
