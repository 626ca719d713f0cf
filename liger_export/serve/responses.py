"""Responses: JSON, and server-sent events."""

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

__all__ = ["DONE", "Events", "Json", "event_of"]

DONE = "[DONE]"


class Json(JSONResponse):
    """JSON in ASCII: text from a client may hold halves of characters, which UTF-8 does not have."""

    def render(self, content: Any) -> bytes:
        """Return the body."""
        return json.dumps(content, separators=(",", ":")).encode()


class Events(Response):
    """Server-sent events. When the client hangs up, the iterator of events is cancelled at once.

    ``end`` is called in any case, also if the client hangs up before the first event.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[Any], end: Callable[[], None]) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events, self._end = events, end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events as they come."""
        try:
            await self._send_all(receive, send)
        finally:
            self._end()

    async def _send_all(self, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as tasks:

            async def listen() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                tasks.cancel_scope.cancel()

            tasks.start_soon(listen)
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for event in self._events:
                await send({"type": "http.response.body", "body": event_of(event), "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            tasks.cancel_scope.cancel()


def event_of(event: Any) -> bytes:
    """Return an event as it is sent: a string as it is, any other value as JSON."""
    text = event if isinstance(event, str) else json.dumps(event, separators=(",", ":"))
    return f"data: {text}\n\n".encode()
