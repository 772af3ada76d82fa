"""What a body says it is: another type than the route reads is refused by name, as a 415."""

from fastapi import Request

from core.errors import UnsupportedMediaTypeError

_JSON = "application/json"
_FORM = "multipart/form-data"


def require_json(request: Request) -> None:
    """Raise UnsupportedMediaTypeError for a body that names another type. One that names none is tried as it is."""
    given = _named(request)
    if given and given != _JSON and not given.endswith("+json"):
        raise _refusal(given, _JSON)


def require_form(request: Request) -> None:
    """Raise UnsupportedMediaTypeError for a body that is no form; one without files is told which it lacks."""
    given = _named(request)
    if given and given not in (_FORM, "application/x-www-form-urlencoded"):
        raise _refusal(given, _FORM)


def _named(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _refusal(given: str, wanted: str) -> UnsupportedMediaTypeError:
    return UnsupportedMediaTypeError(
        f"The body's Content-Type is '{given:.80}', and this URL takes '{wanted}'.",
        param="Content-Type",
        code="unsupported_media_type",
    )
