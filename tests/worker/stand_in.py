"""A child that speaks the protocol without a model: deterministic steps, real checkpoints, and ways to go wrong.

    python stand_in.py [MODE ...] -- INPUT.json OUT/

Modes: steps=N, pause=SECONDS (a step), save=N (a checkpoint every N steps), crash=K (SIGKILL itself at step K, unless
it resumed), stuck=K (says nothing more at step K, unless it resumed), alive=SECONDS (but has a pulse there),
crash-always, fail, hang (ignores SIGTERM), bare (no artifacts), torn (checkpoints that differ from their manifest),
replan (takes a smaller plan, unless it was given one),
noise (lines that are no lines), hostile (texts that databases refuse).
"""

import csv
import json
import os
import signal
import sys
import time
import zipfile
from pathlib import Path

from core.resolve import Facts, Resolved, resolve
from core.shape import ModelShape
from worker.checkpoints import write_manifest
from worker.protocol import (
    Alive,
    Done,
    EvaluationInput,
    Event,
    ExitCode,
    Failed,
    LineWriter,
    Progress,
    Replanned,
    Saved,
    Started,
    Step,
    TrainingInput,
    take_stdout,
)

#: OpenAI's, the first of the real child's.
_COLUMNS = ("step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy")


def loss(step: int) -> float:
    """The figure of a step: the same in every attempt."""
    return 2.0 / step


#: What a run on a small machine would find; the API's tests settle their jobs by it as well.
FACTS = Facts(
    train_samples=100,
    mean_tokens=50,
    p90_tokens=100,
    longest_tokens=200,
    context_length=512,
    shape=ModelShape(hidden_size=64, intermediate_size=128, layers=2, heads=4, kv_heads=2, head_dim=16, vocab_size=512),
    available_memory=2**34,
    device="cpu",
    fast_bfloat16=False,
    prompt_template="chat",
)


def _smaller(resolved: Resolved) -> Resolved:
    return resolved.model_copy(
        update={"pass_tokens": 7, "plan": resolved.plan.model_copy(update={"pass_tokens": 7, "needed": 1})}
    )


class StandIn:
    def __init__(self, modes: dict[str, str], lines: LineWriter, out: Path) -> None:
        self.modes, self.lines, self.out = modes, lines, out
        self.total = int(modes.get("steps", 6))
        self.stopped = False
        signal.signal(signal.SIGTERM, signal.SIG_IGN if "hang" in modes else self._stop)

    def _stop(self, *_: object) -> None:
        self.stopped = True

    def train(self, job: TrainingInput) -> ExitCode:
        first = json.loads((job.resume_from / "state.json").read_text())["step"] if job.resume_from else 0
        self.total = job.spec.hone.training.max_steps or self.total
        resolved = resolve(job.spec, FACTS, job.plan).model_copy(update={"total_steps": self.total})
        report = {"samples": len(job.train_file.read_text().splitlines())}
        self.lines.send(Started(resolved=resolved, report=report, step=first))
        if "fail" in self.modes:
            self.lines.send(Failed(code="dataset_unusable", message="line 3: nothing to learn", param="training_file"))
            return ExitCode.FAILED
        if "noise" in self.modes:
            os.write(1, b'Loading weights: 100%\n\xff\xfe\n{"type": "mystery"}\n')
        if "hostile" in self.modes:
            self.lines.send(Event(message="NUL \0 within"))
        if "replan" in self.modes and job.plan is None:
            self.lines.send(Replanned(resolved=_smaller(resolved)))
        for step in range(first + 1, self.total + 1):
            if "crash-always" in self.modes or (step == int(self.modes.get("crash", 0)) and not first):
                os.kill(os.getpid(), signal.SIGKILL)
            while step == int(self.modes.get("stuck", 0)) and not first:
                time.sleep(float(self.modes.get("alive", 1)))
                if "alive" in self.modes:
                    self.lines.send(Alive())
                if self.stopped:
                    break
            self._step(step)
            if self.stopped:
                self._save(step)
                return ExitCode.STOPPED
            if step % int(self.modes.get("save", 2)) == 0:
                self._save(step)
        while "hang" in self.modes:
            time.sleep(1)
        if "bare" not in self.modes:
            self._artifacts()
        self.lines.send(Done(report={"seconds": 1.5}, trained_tokens=1234))
        return ExitCode.DONE

    def _step(self, step: int) -> None:
        time.sleep(float(self.modes.get("pause", 0)))
        seconds_left = 0.1 * (self.total - step)
        metrics = {"train_loss": loss(step), "train_accuracy": 0.5}
        self.lines.send(Step(step=step, total_steps=self.total, metrics=metrics, seconds_left=seconds_left))
        if step == self.total:
            self.lines.send(Step(step=step, total_steps=self.total, metrics={"valid_loss": 1.4}))

    def _save(self, step: int) -> None:
        folder = self.out / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "state.json").write_text(json.dumps({"step": step}))
        write_manifest(folder, {"step": step})
        if "torn" in self.modes:
            (folder / "state.json").write_text("{")
        self.lines.send(Saved(step=step, folder=folder.name, metrics={"train_loss": loss(step)}))

    def _artifacts(self) -> None:
        folder = self.out / "artifacts"
        folder.mkdir()
        rows = [[step, loss(step), 0.5, 1.4 if step == self.total else ""] for step in range(1, self.total + 1)]
        with (folder / "step_metrics.csv").open("w", newline="") as file:
            csv.writer(file).writerows([_COLUMNS, *([*row, ""] for row in rows)])
        with zipfile.ZipFile(folder / "adapter.zip", "w") as archive:
            archive.writestr("adapter_config.json", "{}")
            archive.writestr("manifest.json", "{}")

    def evaluate(self, job: EvaluationInput) -> ExitCode:
        items = [json.loads(line)["item"] for line in job.items_file.read_text().splitlines()]
        folder = self.out / "artifacts"
        folder.mkdir()
        answer = {"output_text": "a\0b", "code": "a", "finish_reason": "stop", "prompt_tokens": 1, "tokens": 2}
        results = [
            {"name": criterion.name, "type": criterion.type, "score": 0.5, "passed": True, "base": None}
            for criterion in job.spec.criteria
        ]
        with (folder / "items.jsonl").open("w") as file:
            for position, item in enumerate(items):
                self.lines.send(Progress(done=position + 1, total=len(items), seconds_left=1.0))
                line = {"position": position, "item": item, "prompt": "p", "status": "pass", "sample": answer}
                file.write(json.dumps({**line, "base": None, "results": results}) + "\n")
        (folder / "scores.json").write_text("{}")
        (folder / "codebleu.png").write_bytes(b"\x89PNG")
        files = sorted(path.name for path in job.adapter.iterdir()) if job.adapter else None
        self.lines.send(Done(report={"adapter_files": files, "template": job.prompt_template}))
        return ExitCode.DONE


def main(arguments: list[str]) -> ExitCode:
    split = arguments.index("--")
    modes = {name: value for name, _, value in (mode.partition("=") for mode in arguments[:split])}
    source, out = Path(arguments[split + 1]), Path(arguments[split + 2])
    stand_in = StandIn(modes, take_stdout(), out)
    if '"train_file"' in source.read_text():
        return stand_in.train(TrainingInput.model_validate_json(source.read_bytes()))
    return stand_in.evaluate(EvaluationInput.model_validate_json(source.read_bytes()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
