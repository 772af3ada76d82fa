"""The command line's one console, and how it says that something went wrong."""

import typer
from rich.console import Console

console = Console(highlight=False)


def say(text: str = "", *, style: str | None = None) -> None:
    """Print one line as it is: no markup, never broken, so that it can be copied."""
    console.print(text, style=style, markup=False, soft_wrap=True)


def fail(reason: str) -> typer.Exit:
    """Say why nothing more is done; the caller raises what it gets, and the exit code is 1."""
    say(f"Error: {reason}", style="bold red")
    return typer.Exit(1)
