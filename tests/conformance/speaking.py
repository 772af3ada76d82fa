"""OpenAI's client, sync or async, under watch: what was called with what, and whether the answers are its types'.

Runs in an environment that has the client and nothing else of ours or pytest's.
"""

import asyncio
import inspect
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import openai
from pydantic import BaseModel, ValidationError

from tests.conformance.differences import without_differences
from tests.conformance.parameters import places_of, used_places

RESOURCES = ("files", "uploads", "fine_tuning", "models", "evals", "webhooks")
#: What an envelope carries by OpenAI's specification, and the client's types of pages do not name.
_ENVELOPE = {"object", "first_id", "last_id", "has_more"}
#: Where everything is put that is Hone's own.
_OURS = "hone"
_LONGEST_WAIT = 60
#: How Hone says that it does not have what OpenAI has: by the kind, by the value, or by the field.
_NOT_HERE = ("unsupported", "invalid_value", "unknown_field")


@dataclass(frozen=True)
class Exchange:
    """One request and its answer."""

    method: str
    path: str
    status: int
    body: Any
    text: str


@dataclass
class Heard:
    """What one client was told over a whole run."""

    #: Places of parameters by method: those that worked, and what was refused with its reason.
    works: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    refused: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    differences: set[str] = field(default_factory=set)
    exchanges: list[Exchange] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Speaker:
    """One client and what it heard."""

    def __init__(self, base_url: str, key: str, *, is_async: bool) -> None:
        self.heard = Heard()
        self.base_url = base_url
        with urlopen(f"{base_url}/openapi.json") as answer:
            #: What the server says of itself: its routes and the schemas of what it takes.
            self.document: dict[str, Any] = json.load(answer)
        options: dict[str, Any] = {"base_url": f"{base_url}/v1", "api_key": key, "max_retries": 0}
        if is_async:
            http = openai.DefaultAsyncHttpxClient(event_hooks={"response": [self._hear_async]})
            self.client: Any = openai.AsyncOpenAI(http_client=http, **options)
        else:
            http = openai.DefaultHttpxClient(event_hooks={"response": [self._hear]})
            self.client = openai.OpenAI(http_client=http, **options)

    # --- What goes over the wire --------------------------------------------------------------------------------------

    async def _hear_async(self, response: Any) -> None:
        await response.aread()
        self._keep(response)

    def _hear(self, response: Any) -> None:
        response.read()
        self._keep(response)

    def _keep(self, response: Any) -> None:
        is_json = response.headers.get("content-type", "").partition(";")[0] == "application/json"
        path = urlsplit(str(response.url)).path
        exchange = Exchange(
            response.request.method,
            path.removeprefix("/v1"),
            response.status_code,
            json.loads(response.text) if is_json else None,
            response.text if is_json else "",
        )
        self.heard.exchanges.append(exchange)
        if exchange.status >= 400 and not _is_error(exchange.body):
            self.heard.problems.append(f"{exchange.method} {path}: {exchange.status} is no error: {response.text:.200}")
        if not response.headers.get("x-request-id", "").startswith("req_"):
            self.heard.problems.append(f"{exchange.method} {path}: {exchange.status} without x-request-id")

    # --- Calls --------------------------------------------------------------------------------------------------------

    def has(self, method: str) -> bool:
        """Whether this version of the client has the method."""
        return method in methods_of(self.client)

    async def call(self, method: str, /, **given: Any) -> Any:
        """Call a method that has to work; its answer is held against the client's own types."""
        function = _find(self.client, method)
        answer = function(**given)
        if inspect.isawaitable(answer):
            answer = await answer
        if isinstance(answer, BaseModel):
            self.check(method, answer, given.get("payload") or self.heard.exchanges[-1].text)
        self.heard.works[method] |= used_places(function, given)
        return answer

    async def every(self, method: str, /, **given: Any) -> list[Any]:
        """All entries of a list, page by page, as the client walks it."""
        page = await self.call(method, **given)
        entries = list(page.data)
        while page.has_next_page():
            page = page.get_next_page()
            if inspect.isawaitable(page):
                page = await page
            self.check(method, page, self.heard.exchanges[-1].text)
            entries += page.data
        return entries

    async def until(self, true: Callable[[Any], bool], method: str, /, **given: Any) -> Any:
        """Ask again and again until the answer is as it should be."""
        deadline = time.monotonic() + _LONGEST_WAIT
        while not true(answer := await self.call(method, **given)):
            assert time.monotonic() < deadline, f"{method}{given} stayed {answer!r:.600}"
            await asyncio.sleep(0.05)
        return answer

    async def fails(self, status: int, code: str | None, method: str, /, **given: Any) -> Any:
        """Call what has to be refused, in OpenAI's shape and by the client's own class for the status."""
        error = await self.error_of(method, given)
        assert error is not None, f"{method}{given} was not refused"
        assert error.status_code == status, f"{method}: {error.status_code} {error.message}"
        assert error.code == code, f"{method}: {error.code!r} instead of {code!r}: {error.message}"
        assert type(error).__name__ == _CLASSES[status], type(error)
        assert error.request_id.startswith("req_")
        return error

    async def error_of(self, method: str, given: dict[str, Any]) -> Any:
        """The refusal of a call, or None when it was carried out."""
        try:
            answer = _find(self.client, method)(**given)
            if inspect.isawaitable(answer):
                await answer
        except openai.APIStatusError as error:
            return error
        return None

    async def refuses(self, place: str, method: str, /, **given: Any) -> None:
        """Call with a value that Hone says it does not have: everything at and below ``place`` counts as refused."""
        error = await self.error_of(method, given)
        assert error is not None, f"{method}: {place} was not refused"
        self._note_refusal(place, method, error)

    async def attempt(self, place: str, method: str, /, **given: Any) -> Any:
        """The answer, or None when ``place`` is refused with a reason; whichever it is stands in the table."""
        try:
            return await self.call(method, **given)
        except openai.APIStatusError as error:
            self._note_refusal(place, method, error)
        return None

    def _note_refusal(self, place: str, method: str, error: openai.APIStatusError) -> None:
        assert error.status_code == 400, f"{method}: {error.message}"
        assert error.code in _NOT_HERE, f"{method}: {error.code}: {error.message}"
        assert error.param, f"{method}: no param: {error.message}"
        self.heard.refused[method][place] = _reason(error)

    # --- Checks -------------------------------------------------------------------------------------------------------

    def check(self, method: str, answer: BaseModel, text: str) -> None:
        """Hold an answer's text against the type that the client made of it, strictly."""
        body, seen = without_differences(json.loads(text))
        self.heard.differences |= seen
        try:
            strict = type(answer).model_validate_json(json.dumps(body), strict=True)
        except ValidationError as error:
            self.heard.problems.append(f"{method}: {_told(error)}")
            return
        self.heard.problems += [f"{method}: unknown field {name}" for name in _unknown(strict, "", is_page(answer))]

    def unused(self) -> list[str]:
        """Places of parameters that were neither used nor refused, and methods that were not called."""
        missing = []
        for method, function in methods_of(self.client).items():
            works, refused = self.heard.works.get(method, set()), self.heard.refused.get(method, {})
            for place in sorted(places_of(function)):
                below = any(place == at or (place.startswith(at) and place[len(at)] in ".([=") for at in refused)
                if place not in works and not below:
                    missing.append(f"{method}: {place}")
            if method not in self.heard.works and not refused:
                missing.append(f"{method}: never called")
        return missing

    def report(self) -> dict[str, Any]:
        """What was heard, as JSON has it; a place that worked once is no longer refused."""
        heard = self.heard
        return {
            "methods": sorted(methods_of(self.client)),
            "called": sorted(heard.works),
            "refused": {
                method: {at: why for at, why in sorted(reasons.items()) if at not in heard.works[method]}
                for method, reasons in sorted(heard.refused.items())
            },
            "differences": sorted(heard.differences),
            "unused": self.unused(),
            "problems": list(dict.fromkeys(heard.problems)),
            "exchanges": [{**asdict(exchange), "text": ""} for exchange in heard.exchanges],
        }


_CLASSES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    413: "APIStatusError",
}


def _is_error(body: Any) -> bool:
    """Whether a refusal has OpenAI's shape and nothing beside it."""
    if (
        not isinstance(body, dict)
        or set(body) != {"error"}
        or set(body["error"]) != {"message", "type", "param", "code"}
    ):
        return False
    error = body["error"]
    return all(isinstance(error[name], str) for name in ("message", "type")) and all(
        isinstance(error[name], str | None) for name in ("param", "code")
    )


def methods_of(client: Any) -> dict[str, Callable[..., Any]]:
    """Every method of the resources that Hone serves, found by looking at the client."""
    return {name: method for root in RESOURCES for name, method in _walk(getattr(client, root), root)}


def _walk(resource: Any, path: str) -> Iterator[tuple[str, Callable[..., Any]]]:
    for name in sorted(dir(type(resource))):
        if name.startswith(("_", "with_")):
            continue
        kind = inspect.getattr_static(type(resource), name)
        if inspect.isfunction(kind):
            yield f"{path}.{name}", getattr(resource, name)
        elif hasattr(inner := getattr(resource, name), "with_raw_response"):
            yield from _walk(inner, f"{path}.{name}")


def _find(client: Any, method: str) -> Callable[..., Any]:
    found = client
    for name in method.split("."):
        found = getattr(found, name)
    return found  # type: ignore[no-any-return]


def is_page(answer: BaseModel) -> bool:
    """Whether an answer is one of the client's pages."""
    return hasattr(answer, "has_next_page")


def _unknown(model: BaseModel, path: str, page: bool = False) -> Iterator[str]:
    """Fields that the client's types do not have, wherever they stand, without those that may be there."""
    allowed = {_OURS} | (_ENVELOPE if page else set())
    if "__pydantic_extra__" not in type(model).__annotations__:  # a type that says that it takes others
        yield from (f"{path}{name}" for name in model.model_extra or {} if name not in allowed)
    for name in type(model).model_fields:
        value = getattr(model, name)
        for index, entry in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(entry, BaseModel):
                yield from _unknown(entry, f"{path}{name}[{index}]." if isinstance(value, list) else f"{path}{name}.")


def _told(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return f"{error.error_count()} strict errors; {where}: {first['msg']} ({first['input']!r:.80})"


def _reason(error: openai.APIStatusError) -> str:
    body = error.body if isinstance(error.body, dict) else {}
    return str(body.get("message", error.message))
