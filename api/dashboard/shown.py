"""Figures, times and code as people read them; all text that is returned as markup has been escaped here."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer, TextLexer

now = time.time

#: A blank at which a line does not end.
NO_BREAK = "\u00a0"

_UNITS = ("kB", "MB", "GB", "TB")
_CODE = HtmlFormatter(nowrap=True, classprefix="c-")
#: Longer code is shown without colours: the page has to stay quick.
_MOST_COLOURED = 20_000

NOTHING = "–"


def size(count: float | None) -> str:
    """Bytes, in units of 1,000."""
    if count is None:
        return NOTHING
    if count < 1000:
        return _joined(f"{count:.0f} B")
    value = float(count)
    for unit in _UNITS:
        value /= 1000
        if value < 999.5 or unit == _UNITS[-1]:
            return _joined(f"{value:.3g} {unit}")
    raise AssertionError


def count(value: float | None) -> str:
    """A whole number with separators."""
    return NOTHING if value is None else f"{value:,.0f}"


def figure(value: Any, digits: int = 3) -> str:
    """A measured number."""
    if value is None:
        return NOTHING
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.{digits}f}"


def percent(share: float | None) -> str:
    """A share of 1 in percent."""
    if share is None:
        return NOTHING
    return _joined(f"{share * 100:.0f} %" if share >= 0.0995 or share == 0 else f"{share * 100:.2g} %")


def duration(seconds: float | None) -> str:
    """A length of time in its two largest units."""
    if seconds is None:
        return NOTHING
    return _joined(_two_units(max(0, round(seconds))))


def _two_units(left: int) -> str:
    if left < 60:
        return f"{left} s"
    if left < 3600:
        return f"{left // 60} min {left % 60} s" if left < 600 and left % 60 else f"{round(left / 60)} min"
    if left < 86_400:
        return f"{left // 3600} h {left % 3600 // 60} min"
    return f"{left // 86_400} d {left % 86_400 // 3600} h"


def _joined(text: str) -> str:
    """A figure and its unit, which stay on one line."""
    return text.replace(" ", NO_BREAK)


def left_until(at: float | None) -> str:
    """Time that is left until then."""
    if at is None:
        return NOTHING
    left = at - now()
    return f"{duration(left)} left" if left > 0 else "any moment now"


def until(at: float | None) -> str:
    """When something will be."""
    if at is None:
        return NOTHING
    left = at - now()
    return f"in {duration(left)}" if left > 0 else "any moment now"


def moment(at: float | None) -> Markup | str:
    """A time as how long ago it was, with the full time as its title."""
    if at is None:
        return NOTHING
    ago = now() - at
    full = datetime.fromtimestamp(at, UTC)
    if ago < 45:
        text = "just now"
    elif ago < 86_400 * 7:
        text = f"{_largest(ago)} ago"
    else:
        text = f"{full:%d %b %Y}".lstrip("0")
    return Markup('<time datetime="{}" title="{} UTC">{}</time>').format(
        full.isoformat(timespec="seconds"), f"{full:%Y-%m-%d %H:%M:%S}", text
    )


def _largest(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return "1 min"


def place(number: int) -> str:
    """A place in the queue."""
    if number == 1:
        return "next in the queue"
    return f"{number - 1:,} ahead in the queue"


def code(text: str | None, language: str = "python") -> Markup:
    """Code with its syntax marked by classes."""
    text = text or ""
    lexer = PythonLexer(stripnl=False) if language == "python" and len(text) < _MOST_COLOURED else TextLexer()
    return Markup(highlight(text, lexer, _CODE))  # noqa: S704 - Pygments escapes what it does not make itself


def word(status: str) -> str:
    """A status as people say it."""
    return {"validating_files": "checking files", "in_progress": "running"}.get(status, status.replace("_", " "))


FILTERS: dict[str, Callable[..., Any]] = {
    "size": size,
    "count": count,
    "figure": figure,
    "percent": percent,
    "duration": duration,
    "left_until": left_until,
    "until": until,
    "moment": moment,
    "place": place,
    "code": code,
    "word": word,
}
