"""demo-out/report.md: what ran, on what, and what came out, as the API and the downloads tell it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: The figures of a corpus, as they are called in headings.
PART_TITLES = {
    "codebleu": "CodeBLEU", "ngram": "n-gram", "weighted_ngram": "weighted", "syntax": "syntax", "dataflow": "dataflow",
}  # fmt: skip
_SHOWN_SAMPLES = 3

Json = dict[str, Any]


@dataclass(frozen=True)
class DemoRun:
    """What the demo knows at its end: the job and the run as the API answers them, steps in order, seconds by phase."""

    job: Json
    run: Json
    steps: list[Json]
    seconds: dict[str, float]

    @property
    def scores(self) -> Json:
        """The evaluation's scores."""
        scores: Json = self.run["hone"]["scores"]
        return scores

    @property
    def report(self) -> Json:
        """The fine-tune's figures: model, dataset, hardware, versions."""
        report: Json = self.job["hone"]["report"]
        return report


def criterion_of(scores: Json) -> Json:
    """The demo's one criterion: CodeBLEU, of the tuned model and of its base."""
    criterion: Json = scores["criteria"][0]
    return criterion


def sides(criterion: Json) -> list[tuple[str, Json]]:
    """Base and tuned, and each one's figures."""
    return [("base", criterion["base"]), ("tuned", criterion["model"])]


def difference_row(criterion: Json) -> list[str]:
    """How much better each figure is, signed."""
    return [signed(criterion["difference"][part]["mean"]) for part in PART_TITLES]


def signed(value: float | None) -> str:
    """A difference with its sign."""
    return "-" if value is None else f"{value:+.3f}"


def write_report(out: Path, demo: DemoRun) -> None:
    """Write ``report.md`` into ``out``; the pictures and items.jsonl lie there."""
    items = [json.loads(line) for line in (out / "items.jsonl").read_text(encoding="utf-8").splitlines()]
    parts = [
        _what(demo),
        _model(demo),
        _data(demo),
        _training(demo),
        _scores(demo),
        _samples(items),
        _time(demo),
        _files(),
    ]
    (out / "report.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _what(demo: DemoRun) -> str:
    job, hardware, versions = demo.job, demo.report["hardware"], demo.report["versions"]
    machine = f"{hardware['processor']}, {hardware['cores']} cores, {hardware['memory'] / 2**30:.0f} GB"
    if "gpu" in hardware:
        machine += f"; {hardware['gpu']}, {hardware['gpu_memory'] / 2**30:.0f} GB"
    return "\n".join(
        [
            "# A fine-tune and its evaluation, by Hone",
            "",
            f"`{job['model']}` was fine-tuned by QLoRA on functions of Python {versions['python']}'s standard library",
            f"(job `{job['id']}`) and became `{job['fine_tuned_model']}`.",
            f"Base and tuned model then answered {demo.scores['samples']} held-out questions (run `{demo.run['id']}`).",
            "",
            f"- Machine: {machine}; computed on {hardware['device']}",
            f"- Versions: {', '.join(f'{name} {version}' for name, version in versions.items())}",
        ]
    )


def _model(demo: DemoRun) -> str:
    model, hone = demo.report["model"], demo.job["hone"]
    quantization, lora = hone["quantization"], hone["lora"]
    rows = [
        ["parameters", f"{model['parameters']:,}"],
        ["of these trained", f"{model['trainable_parameters']:,} ({model['trainable_percent']:.2f} %)"],
        ["bytes at 32 bits", f"{model['bytes_at_32_bits']:,}"],
        ["bytes as loaded", f"{model['bytes_as_loaded']:,}"],
        ["full training would need", _gigabytes(model["memory_full_training"])],
        ["QLoRA needs, without activations", _gigabytes(model["memory_qlora"])],
        [
            "base kept as",
            f"{quantization['type']}, double quantization {'on' if quantization['double_quantization'] else 'off'}",
        ],
        ["adapter", f"r={lora['r']}, alpha={lora['alpha']}, layers {lora['target_modules']}"],
    ]
    return "## Model\n\n" + _table(["", ""], rows)


def _gigabytes(parts: dict[str, int]) -> str:
    told = ", ".join(f"{name.replace('_', ' ')} {size / 1e9:.2f}" for name, size in parts.items())
    return f"{sum(parts.values()) / 1e9:.2f} GB ({told})"


def _data(demo: DemoRun) -> str:
    data = demo.report["dataset"]
    tokens = data["tokens"]
    rows = [
        ["samples trained on", f"{data['train_samples']:,}"],
        ["samples for the validation loss", f"{data['validation_samples']:,}"],
        [
            "tokens a sample",
            f"mean {tokens['mean']}, quartiles {tokens['quartile_1']}/{tokens['median']}/{tokens['quartile_3']}",
        ],
        ["90th percentile, longest", f"{tokens['percentile_90']}, {tokens['longest']}"],
        ["cut at", f"{data['max_seq_length']} tokens ({data['cut_samples']} samples were longer)"],
        ["tokens an epoch", f"{data['tokens_per_epoch']:,}, of which {data['trained_share']:.0%} count in the loss"],
    ]
    return "## Data\n\n" + _table(["", ""], rows) + "\n\n![Lengths of the samples](lengths.png)"


def _training(demo: DemoRun) -> str:
    training, chosen = demo.job["hone"]["training"], demo.job["hyperparameters"]
    rows = [[name, str(value)] for name, value in (chosen | training).items()]
    reasons = [f"- `{name}`: {reason}" for name, reason in demo.job["hone"]["reasons"].items()]
    return "\n\n".join(
        [
            "## Training",
            _losses(demo.steps),
            "![Training and validation loss](loss.png)",
            "<details><summary>Settings as they ran</summary>",
            _table(["setting", "value"], rows),
            "Chosen by Hone, because:",
            "\n".join(reasons),
            "</details>",
        ]
    )


def _losses(steps: list[Json]) -> str:
    rows = []
    for name, title in (
        ("train_loss", "training loss"),
        ("valid_loss", "validation loss"),
        ("train_accuracy", "token accuracy"),
    ):
        known = [step for step in steps if step.get(name) is not None]
        if known:
            first, last = known[0], known[-1]
            rows.append([title, f"{first[name]:.3f} (step {first['step']})", f"{last[name]:.3f} (step {last['step']})"])
    return _table(["", "first", "last"], rows)


def _scores(demo: DemoRun) -> str:
    criterion = criterion_of(demo.scores)
    rows = [[name, *(_with_interval(figures, part) for part in PART_TITLES)] for name, figures in sides(criterion)]
    rows.append(["difference", *(_difference(criterion["difference"][part]) for part in PART_TITLES)])
    weights = ", ".join(f"{weight:g}" for weight in criterion["weights"])
    how = demo.scores["bootstrap"]
    return "\n\n".join(
        [
            "## Evaluation",
            f"**{criterion['verdict']['sentence']}**",
            _table(["", *PART_TITLES.values()], rows),
            f"CodeBLEU by {criterion['metric']}, weights {weights}; means over {demo.scores['samples']} answers. In "
            f"brackets: {how['confidence']:.0%} intervals of a bootstrap over the items ({how['resamples']:,} draws, "
            f"seed {how['seed']}); a difference is taken item by item, so its interval is its own. "
            "An answer that is empty or does not parse scores 0. How the answers were:",
            _counts(demo, criterion),
            "![CodeBLEU and its parts, base beside tuned, with intervals](codebleu.png)",
        ]
    )


def _with_interval(figures: Json, part: str) -> str:
    return f"{_number(figures[part])}{_brackets(figures['intervals'][part], _number)}"


def _difference(found: Json) -> str:
    return f"{signed(found['mean'])}{_brackets(found['interval'], signed)}"


def _brackets(interval: list[float] | None, write: Callable[[float | None], str]) -> str:
    return "" if interval is None else f" [{write(interval[0])} to {write(interval[1])}]"


def _counts(demo: DemoRun, criterion: Json) -> str:
    """What became of the answers: whether they were code, and what ended them."""
    counts = ["empty", "unparsable", "refused", "truncated", "exact_match"]
    ends = {"stop": "ended by the model", "fence": "ended behind their code block"}
    reasons = {"base": demo.scores["usage"][1]["finish_reasons"], "tuned": demo.scores["usage"][0]["finish_reasons"]}
    rows = [
        [
            name,
            *(str(figures[count]) for count in counts),
            *(str(reasons[name].get(reason, 0)) for reason in ends),
        ]
        for name, figures in sides(criterion)
    ]
    return _table(["", *(count.replace("_", " ") for count in counts), *ends.values()], rows)


def _samples(items: list[Json]) -> str:
    """The first few items, as they came: nothing is picked for its score."""
    parts = ["## The first answers, side by side"]
    for item in items[:_SHOWN_SAMPLES]:
        result = item["results"][0]
        base = result["base"] or {"score": None}
        parts += [
            f"### {item['position'] + 1}",
            _fenced(item["item"]["instruction"], "text"),
            "Reference:",
            _fenced(item["item"]["completion"], "python"),
            f"Base ({_number(base['score'])}):",
            _fenced(item["base"]["output_text"] if item["base"] else "", "text"),
            f"Tuned ({_number(result['score'])}):",
            _fenced(item["sample"]["output_text"], "text"),
        ]
    return "\n\n".join(parts)


def _fenced(text: str, language: str) -> str:
    """A code block whose fence is longer than any in the text."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _time(demo: DemoRun) -> str:
    rows = [[step, f"{seconds:.0f}"] for step, seconds in demo.seconds.items()]
    rows.append(["in all", f"{sum(demo.seconds.values()):.0f}"])
    speeds = [step["tokens_per_second"] for step in demo.steps if step.get("tokens_per_second")]
    told = []
    if speeds:
        told.append(f"training {sum(speeds) / len(speeds):.0f} tokens/s (mean of the steps)")
    generation = demo.scores["generation"]
    if generation["tokens_per_second"]:
        told.append(f"answering {generation['tokens_per_second']:.0f} tokens/s over {generation['seconds']:.0f} s")
    return (
        "## Where the time went\n\n"
        + _table(["step", "seconds"], rows)
        + (f"\n\nSpeed: {', '.join(told)}." if told else "")
    )


def _files() -> str:
    return "\n".join(
        [
            "## Files",
            "",
            "- `adapter/`, `adapter.zip`: the adapter with its tokenizer, model card and manifest",
            "- `manifest.json`: spec, hashes of data and base model, versions, hardware, seed, SHA-256 of each file",
            "- `step_metrics.csv`: loss, accuracy, learning rate, gradient norm and speed of each step",
            "- `scores.json`, `items.jsonl`: the scores; every prompt, answer and score",
        ]
    )
