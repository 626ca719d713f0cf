"""Errors in OpenAI's form."""

from typing import Any

from liger_export.errors import BusyError, InputError, LigerExportError, NotFiniteError
from liger_export.serve.responses import Json

__all__ = ["ApiError", "error_of"]

RETRY_SECONDS = "1"


class ApiError(Exception):
    """An error to be sent to the client.

    Attributes:
        status: HTTP status.
        message: What is wrong, and what to do.
        param: The field of the request that is wrong.
        code: A short name.
    """

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    @property
    def body(self) -> dict[str, Any]:
        """The error as JSON."""
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status)
        kind = kind or ("server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Json:
        """Return the response with this error."""
        headers = {429: {"retry-after": RETRY_SECONDS}, 401: {"www-authenticate": "Bearer"}}.get(self.status)
        return Json(self.body, self.status, headers)


def error_of(error: LigerExportError, param: str | None = None) -> ApiError:
    """Return an error of this project as one for the client."""
    if isinstance(error, BusyError):
        return ApiError(429, str(error), code="busy")
    if isinstance(error, InputError) and not isinstance(error, NotFiniteError):
        return ApiError(400, str(error), param=param, code="invalid_value")
    return ApiError(500, str(error), code="model_error")
