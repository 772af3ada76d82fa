"""Structured logs on standard error: one line an event, JSON where no person is watching."""

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

_SECRET = re.compile(r"\b(hone-[A-Za-z0-9_-]{40,}|(hf_|sk-)[A-Za-z0-9_-]{8,})|(?<=://)[^/@\s:]+:[^/@\s]+(?=@)")


def _redact(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Cut keys and passwords out of every text of a log line."""
    return {key: _SECRET.sub("[redacted]", value) if isinstance(value, str) else value for key, value in event.items()}


def configure_logging(level: str = "INFO") -> None:
    """Send structlog's and the standard library's records to standard error, redacted."""
    human = sys.stderr.isatty()
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _redact,
    ]
    renderer = structlog.dev.ConsoleRenderer() if human else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)


def get_logger(name: str) -> Any:
    """A structlog logger; its calls take an event and keyword fields."""
    return structlog.get_logger(name)
