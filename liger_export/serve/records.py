"""Log lines and counts of requests: sizes and times, never text."""

import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from secrets import token_hex
from typing import Any

from starlette.requests import Request
from starlette.types import Scope

from liger_export.runtime.streams import Stream
from liger_export.serve.answers import usage_of

__all__ = ["HUNG_UP", "LOGGER", "JsonLines", "Record", "log_to_stderr", "record_of", "set_record"]

LOGGER = logging.getLogger("liger_export.serve")
STATE = "record"
HUNG_UP = "client_hung_up"


@dataclass(slots=True)
class Record:
    """A request.

    Attributes:
        method: Its method.
        path: The path of its endpoint.
        count: Receives the record once it is complete.
        model: Name of the model.
        status: HTTP status of the response.
        error: Short name of the error, if there was one.
        streams: The answers.
        per_prompt: Number of answers to one prompt.
        first_seconds: Seconds from the request to the first piece of an answer.
        request: A new name.
    """

    method: str
    path: str
    count: Callable[["Record", float], None]
    model: str | None = None
    status: int | None = None
    error: str | None = None
    streams: Sequence[Stream] = ()
    per_prompt: int = 1
    first_seconds: float | None = None
    request: str = field(default_factory=lambda: token_hex(6))
    _start: float = field(default_factory=time.monotonic)

    def note_piece(self) -> None:
        """Record the time of the first piece."""
        if self.first_seconds is None:
            self.first_seconds = time.monotonic() - self._start

    @property
    def usage(self) -> dict[str, Any]:
        """The number of tokens."""
        return usage_of(self.streams, self.per_prompt)

    def log(self) -> None:
        """Log and count the request."""
        seconds = time.monotonic() - self._start
        self.count(self, seconds)
        usage = self.usage
        values = {
            "request": self.request,
            "method": self.method,
            "path": self.path,
            "model": self.model,
            "status": self.status,
            "error": self.error,
            "seconds": round(seconds, 4),
            "first_seconds": None if self.first_seconds is None else round(self.first_seconds, 4),
            "prompt_tokens": usage["prompt_tokens"],
            "cached_tokens": usage["prompt_tokens_details"]["cached_tokens"],
            "completion_tokens": usage["completion_tokens"],
            "finish_reasons": [stream.finish_reason for stream in self.streams],
        }
        LOGGER.info("request", extra={"values": values})


class JsonLines(logging.Formatter):
    """Formats log records as JSON. Messages of exceptions are left out, because they can quote a request."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a line."""
        time_of = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        values = {"time": time_of, "level": record.levelname.lower(), "event": record.getMessage()}
        values |= getattr(record, "values", {})
        if record.exc_info and record.exc_info[0] is not None:
            values["exception"] = record.exc_info[0].__name__
            values["at"] = _places(record.exc_info[2])
        return json.dumps(values)


def _places(traceback: Any) -> str:
    """Return the places of a traceback, the innermost first."""
    places: list[str] = []
    while traceback is not None:
        code = traceback.tb_frame.f_code
        places.insert(0, f"{code.co_filename.rsplit('/', 1)[-1]}:{traceback.tb_lineno}")
        traceback = traceback.tb_next
    return " < ".join(places[:8])


def record_of(request: Request) -> Record:
    """Return the record of a request."""
    record: Record = getattr(request.state, STATE)
    return record


def set_record(scope: Scope, record: Record) -> None:
    """Give a request its record."""
    scope.setdefault("state", {})[STATE] = record


def log_to_stderr() -> logging.Handler:
    """Send the log to standard error, and return the handler that does so."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    LOGGER.handlers, LOGGER.propagate = [handler], False
    LOGGER.setLevel(logging.INFO)
    return handler
