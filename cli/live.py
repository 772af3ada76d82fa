"""How a job is shown while it runs: a bar on a terminal, a line a step elsewhere."""

import time
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from cli.console import console, say


class LiveJob:
    """A context that shows one job. ``update`` may be called as often as one likes."""

    def __init__(self, title: str, unit: str, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._title = title
        self._unit = unit
        self._shown = ""
        self._task: TaskID | None = None
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
        )

    def __enter__(self) -> "LiveJob":
        if self._quiet:
            return self
        if console.is_terminal:
            self._task = self._progress.add_task(self._title, total=None, figures="")
            self._progress.start()
        else:
            say(self._title)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._task is not None:
            self._progress.stop()

    def update(self, done: int, total: int | None, figures: str, finish: float | None) -> None:
        """Show ``done`` of ``total``, the figures, and the time left until ``finish`` (unix seconds)."""
        if self._task is not None:
            text = ", ".join(part for part in (figures, _left(finish)) if part)
            self._progress.update(self._task, completed=done, total=total, figures=text)
            return
        if self._quiet:
            return
        line = f"  {self._unit} {done}/{total or '?'}" + (f"  {figures}" if figures else "")
        if line != self._shown:
            say(line + (f", {_left(finish)}" if _left(finish) else ""))
            self._shown = line


def _left(finish: float | None) -> str:
    if finish is None or (seconds := int(finish - time.time())) <= 0:
        return ""
    return f"{seconds // 60}:{seconds % 60:02} left"
