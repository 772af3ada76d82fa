"""One base error; each carries what OpenAI's error shape needs, and the API turns it into JSON in one place."""

from typing import Any


class HoneError(Exception):
    """An error that a user can act on.

    Attributes:
        message: says where, what is wrong, and what to do.
        status: HTTP status when it reaches the API.
        type: OpenAI's error type.
        param: the request's field that is at fault, if one is.
        code: a word for programs.
    """

    status = 400
    type = "invalid_request_error"
    #: More than fits a sentence; goes onto the wire under ``hone``.
    details: dict[str, Any] | None = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code

    def __reduce__(self) -> tuple[object, ...]:
        """Keep every field when the error crosses a process."""
        return _rebuild, (type(self), self.message, self.param, self.code)


def _rebuild(cls: type[HoneError], message: str, param: str | None, code: str | None) -> HoneError:
    return cls(message, param=param, code=code)


class InvalidRequestError(HoneError):
    """The request can't be carried out as it stands."""


class AuthenticationError(HoneError):
    """No key, or one that is not known."""

    status = 401
    type = "authentication_error"


class PermissionDeniedError(HoneError):
    """The thing can be seen and used, and only its owner may do this with it."""

    status = 403
    type = "permission_denied_error"


class NotFoundError(HoneError):
    """No such thing, or another project's."""

    status = 404
    type = "not_found_error"


class TooLargeError(HoneError):
    """A body or a file over the limit."""

    status = 413


class UnsupportedMediaTypeError(HoneError):
    """A body of a type that the route does not read."""

    status = 415


class UnavailableError(HoneError):
    """A part that the request needs can't be reached at the moment."""

    status = 503
    type = "server_error"


class DatasetError(InvalidRequestError):
    """A dataset that can't be used; the message names the line and the field."""


class TrainingError(HoneError):
    """A job that can't go on for a reason that trying again would not mend."""

    status = 500
    type = "server_error"
