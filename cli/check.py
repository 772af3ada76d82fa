"""A dataset's preflight on this machine, and how its report is shown."""

from pathlib import Path
from typing import Any, Literal

from rich.markup import escape
from rich.table import Table

from cli.console import console, say
from core.base_card import BaseCard, CardTokenizer, card_key
from core.card_making import NoCardError, make_card
from core.catalogue import find_base_model, load_catalogue
from core.preflight import How, OnProgress, examine
from core.preflight_report import make_report
from core.records import from_file
from core.settings import Settings, get_settings
from core.specs import PromptTemplate

_BAR = 40


def check_dataset(
    file: Path,
    model: str | None,
    template: PromptTemplate | None,
    max_seq_length: int | Literal["auto"],
    validation: Path | None,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """The report of a preflight, as the API gives it. Raises HoneError for a model that is unknown."""
    settings, note, how, context = get_settings(), None, How(), None
    if model is not None:
        try:
            tokenizer = CardTokenizer(find_card(settings, model))
            how = How(tokenizer, template or tokenizer.card.default_template)
            context = tokenizer.card.config.get("max_position_embeddings")
        except NoCardError as error:
            note = f"{error.message} Lengths are in characters."
    with file.open("rb") as content:
        if validation is None:
            found = examine(from_file(content), settings.max_line_bytes, how, on_progress=on_progress)
        else:
            with validation.open("rb") as other:
                found = examine(
                    from_file(content),
                    settings.max_line_bytes,
                    how,
                    validation=from_file(other),
                    on_progress=on_progress,
                )
    return make_report(found, asked=max_seq_length, context_length=context, note=note)


def find_card(settings: Settings, model: str) -> BaseCard:
    """A base model's card, kept where a Hone of this machine keeps its own. Raises NoCardError, InvalidRequestError."""
    entry = find_base_model(load_catalogue(settings), model)
    kept = settings.home / "storage" / card_key(model, entry)
    if kept.exists():
        return BaseCard.model_validate_json(kept.read_bytes())
    made = make_card(model, entry, settings.home / "models")
    kept.parent.mkdir(parents=True, exist_ok=True)
    unfinished = kept.with_suffix(".partial")
    unfinished.write_bytes(made)
    unfinished.rename(kept)
    return BaseCard.model_validate_json(made)


def show_report(name: str, report: dict[str, Any]) -> None:
    """Print a report for people: problems first, then what the data is like."""
    problems, lengths = report["problems"], report["lengths"]
    what = f"{report['samples']:,} samples, format {report['format'] or 'unknown'} ({report['file_format']})"
    say(f"{name}: {what}", style="bold")
    if problems["count"]:
        _show_problems(problems)
    if report["samples"]:
        say(
            f"\n{lengths['unit']}: mean {lengths['mean']:,}, quartiles {lengths['quartile_1']:,} / "
            f"{lengths['median']:,} / {lengths['quartile_3']:,}, 90th percentile {lengths['percentile_90']:,}, "
            f"longest {lengths['longest']:,}, total {lengths['total']:,}"
        )
        _show_histogram(lengths["histogram"])
    if (cut := report["cut"]) is not None:
        lost = f"{cut['samples']:,} samples, {cut['tokens']:,} tokens"
        say(f"\ncut at {cut['max_seq_length']:,} ({cut['reason']}): {lost}")
        trained = report["trained"]
        say(f"trained: {trained['tokens']:,} of {trained['of']:,} tokens ({trained['share']:.1%})")
    for line in [*report["advice"], *([report["note"]] if report["note"] else [])]:
        say(f"- {line}")


def _show_problems(problems: dict[str, Any]) -> None:
    kinds = ", ".join(f"{entry['count']:,} {entry['kind']}" for entry in problems["kinds"])
    say(f"{problems['count']:,} problems: {kinds}", style="red")
    table = Table("line", "field", "reason", "what to do", box=None, pad_edge=False)
    for problem in problems["first"]:
        table.add_row(str(problem["line"]), *(escape(problem[name] or "") for name in ("field", "reason", "fix")))
    console.print(table)


def _show_histogram(histogram: dict[str, list[int]]) -> None:
    most = max(histogram["counts"], default=0)
    for place, count in enumerate(histogram["counts"]):
        bar = "█" * round(_BAR * count / most) if most else ""
        begin, end = histogram["edges"][place : place + 2]
        say(f"  {begin:>7,} - {end - 1:>7,}  {bar or ('▏' if count else '')} {count:,}")
