"""A Hone somewhere: OpenAI's client for it, its errors as words and exit codes, and answers as JSON or for people."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from typing import Annotated, Any
from urllib.parse import urlparse

import typer
from openai import APIConnectionError, APIStatusError, OpenAI, OpenAIError
from pydantic import BaseModel, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from cli.console import console, say
from cli.exits import Exit
from core.settings import get_settings

#: The option that every command has.
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


class Remote(BaseSettings):
    """Where Hone is. With nothing set: this machine's, with the key that `hone up` keeps."""

    model_config = SettingsConfigDict(env_prefix="HONE_", extra="ignore")

    base_url: str | None = None
    api_key: SecretStr | None = None


def connect() -> OpenAI:
    """A client of the Hone that HONE_BASE_URL names."""
    remote, settings = Remote(), get_settings()
    url = (remote.base_url or f"http://127.0.0.1:{settings.port or 8000}").rstrip("/")
    if not urlparse(url).path:
        url += "/v1"
    kept = settings.home / "api-key"
    key = remote.api_key.get_secret_value() if remote.api_key else ""
    if not key and remote.base_url is None and kept.exists():
        key = kept.read_text(encoding="utf-8").strip()
    if not key:
        raise refuse("there is no key. Set HONE_API_KEY; `hone keys create` on the server makes one.")
    return OpenAI(base_url=url, api_key=key, timeout=60)


def refuse(reason: str, code: Exit = Exit.REFUSED) -> typer.Exit:
    """Say on standard error why nothing more is done; the caller raises what it gets."""
    typer.secho(f"Error: {reason}", err=True, fg="red", bold=True)
    return typer.Exit(code)


@contextlib.contextmanager
def errors_told() -> Iterator[OpenAI]:
    """A client; what it raises becomes words and an exit code."""
    with connect() as client:
        try:
            yield client
        except APIConnectionError as error:
            reason = error.__cause__ or error
            raise refuse(
                f"no Hone answers at {client.base_url} ({reason}). Is it running? Is HONE_BASE_URL right?",
                Exit.UNREACHABLE,
            ) from None
        except APIStatusError as error:
            raise refuse(f"{_message(error)} (request {error.request_id})") from None
        except OpenAIError as error:
            raise refuse(str(error)) from None


def _message(error: APIStatusError) -> str:
    body = error.body if isinstance(error.body, dict) else {}
    return str(body.get("message") or error.message)


def emit(value: Any, as_json: bool, show: Callable[[], None]) -> None:
    """Print a value as JSON, or show it to people."""
    if as_json:
        print_json(value)
    else:
        show()


def print_json(value: Any) -> None:
    """One value as JSON on standard output; models as the wire has them."""
    typer.echo(json.dumps(plain(value), indent=2, ensure_ascii=False))


def plain(value: Any) -> Any:
    """A client's object as plain data."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", warnings=False)
    if isinstance(value, list):
        return [plain(one) for one in value]
    return value


def hone_of(value: BaseModel) -> dict[str, Any]:
    """What an object has beyond OpenAI's fields."""
    found: dict[str, Any] = (value.model_extra or {}).get("hone", {})
    return found


def is_quiet(as_json: bool) -> bool:
    """Whether progress is not to be shown: for programs, and where nobody looks."""
    return as_json or not console.is_terminal or "CI" in os.environ


def lines(rows: list[list[str]]) -> None:
    """Rows in columns, never cut or folded, so that an id can be copied."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)] if rows else []
    for row in rows:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
