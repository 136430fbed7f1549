"""Errors for clients, in OpenAI's form. None has a traceback or a path of this machine."""

from typing import Any

KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """What a client did wrong, or what keeps the server from answering.

    Args:
        status: of HTTP.
        param: the field that is wrong.
        code: a word for programs.
    """

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.code = status, _written(message), code
        self.param = None if param is None else _written(param)

    @property
    def body(self) -> dict[str, Any]:
        """The error as JSON values."""
        kind = KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the response."""
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        return {"Retry-After": "1"} if self.status == 429 else {}


def _written(text: str) -> str:
    r"""A text that UTF-8 can write: a client's half character (lone surrogate) as \ud800."""
    return text.encode("utf-8", "backslashreplace").decode()


def wrong(param: str, message: str, code: str = "invalid_value") -> ApiError:
    """An error about a field of a request."""
    return ApiError(400, f"{param}: {message}", param=param, code=code)
