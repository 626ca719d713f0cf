"""The endpoints: what each request is answered with."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from anyio import CapacityLimiter, to_thread
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from liger_export.errors import LigerExportError
from liger_export.runtime.pieces import CANCELLED, Piece
from liger_export.runtime.streams import Stream
from liger_export.serve.answers import Chat, Completion, usage_of
from liger_export.serve.body import parse_json, read_body
from liger_export.serve.errors import ApiError, error_of
from liger_export.serve.fields import Fields
from liger_export.serve.merging import merged
from liger_export.serve.models import ServedModel
from liger_export.serve.records import HUNG_UP, Record, record_of
from liger_export.serve.requests import ChatRequest, CompletionRequest, read_chat, read_completion, require_field
from liger_export.serve.responses import DONE, Events, Json
from liger_export.serve.settings import ServeSettings

__all__ = ["Endpoints"]

JSON = "application/json"
ENCODERS = 2  # each thread keeps memory of its own, so more of them would need more for good


@dataclass(slots=True)
class _Job:
    """A request whose answers are queued.

    Attributes:
        request: What was asked.
        streams: The answers, those to one prompt beside each other.
        answer: Their form.
        record: What is logged of it.
        has_expired: True once they have taken longer than is allowed.
        timer: Calls ``expire``.
    """

    request: ChatRequest | CompletionRequest
    streams: list[Stream]
    answer: Chat | Completion
    record: Record
    has_expired: bool = False
    timer: asyncio.TimerHandle | None = None

    def expire(self) -> None:
        """End all answers because they take too long."""
        self.has_expired = True
        self.cancel()

    def cancel(self) -> None:
        """End all answers within a step, and forget the time."""
        if self.timer is not None:
            self.timer.cancel()
        for stream in self.streams:
            stream.cancel()

    @property
    def usage(self) -> dict[str, Any]:
        """The number of tokens so far."""
        return usage_of(self.streams, self.request.count)


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Answers requests.

    Attributes:
        models: The served models by name.
        settings: The server's settings.
    """

    models: Mapping[str, ServedModel]
    settings: ServeSettings
    _started: float = field(default_factory=time.monotonic)
    _encoders: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(ENCODERS))

    async def chat(self, request: Request) -> Response:
        """Answer ``POST /v1/chat/completions``."""
        fields, model = await self._read(request)
        asked = read_chat(fields, model.defaults)
        prompts = [await to_thread.run_sync(model.chat_prompt, asked, limiter=self._encoders)]
        return await self._respond(request, model, asked, prompts, Chat)

    async def completions(self, request: Request) -> Response:
        """Answer ``POST /v1/completions``."""
        fields, model = await self._read(request)
        asked = read_completion(fields, model.defaults)
        prompts = await to_thread.run_sync(model.prompts, asked, limiter=self._encoders)
        return await self._respond(request, model, asked, prompts, Completion)

    async def list_models(self, request: Request) -> Response:
        """Answer ``GET /v1/models``."""
        return Json({"object": "list", "data": [model.describe() for model in self.models.values()]})

    async def model(self, request: Request) -> Response:
        """Answer ``GET /v1/models/NAME``."""
        return Json(self._model(request.path_params["name"]).describe())

    async def health(self, request: Request) -> Response:
        """Answer ``GET /health``: 503 if a model can no longer answer."""
        is_well = all(model.scheduler.is_running for model in self.models.values())
        seconds = round(time.monotonic() - self._started)
        return Json({"status": "ok" if is_well else "failed", "uptime_seconds": seconds}, 200 if is_well else 503)

    async def _read(self, request: Request) -> tuple[Fields, ServedModel]:
        """Read the body and its model."""
        if request.headers.get("content-type", "").split(";")[0].strip().lower() != JSON:
            raise ApiError(415, f"Send JSON, with the header 'Content-Type: {JSON}'.", code="unsupported_media_type")
        fields = Fields(parse_json(await read_body(request, self.settings.max_request_bytes)))
        model = self._model(require_field(fields, "model"))
        record_of(request).model = model.name
        return fields, model

    def _model(self, name: str) -> ServedModel:
        if name not in self.models:
            served = ", ".join(self.models)
            message = f"There is no model {name!r}. This server has: {served}."
            raise ApiError(404, message, param="model", code="model_not_found")
        return self.models[name]

    async def _respond(
        self,
        request: Request,
        model: ServedModel,
        asked: ChatRequest | CompletionRequest,
        prompts: Sequence[tuple[int, ...]],
        form: Callable[..., Chat | Completion],
    ) -> Response:
        answer = form(
            model.name,
            model.session.tokenizer,
            asked.settings.top_logprobs is not None,
            includes_usage=asked.includes_usage,
        )
        record = record_of(request)
        job = _Job(asked, model.submit(prompts, asked), answer, record)
        job.timer = asyncio.get_running_loop().call_later(self.settings.request_seconds, job.expire)
        record.streams, record.per_prompt = job.streams, asked.count
        if asked.is_streamed:
            return Events(_events(job), job.cancel)
        async with _cancelled_if_hung_up(request, job):
            choices: list[list[Piece]] = [[] for _ in job.streams]
            async for index, piece in _pieces(job):
                choices[index].append(piece)
            return Json(answer.whole(choices, job.usage))


async def _pieces(job: _Job) -> AsyncGenerator[tuple[int, Piece], None]:
    """Yield the pieces of all answers. Raises ApiError if one ends too early, and cancels all."""
    try:
        async with aclosing(merged(job.streams)) as pieces:
            async for index, piece in pieces:
                if piece.finish_reason == CANCELLED:
                    raise _too_slow() if job.has_expired else _shutting_down()
                job.record.note_piece()
                yield index, piece
                await asyncio.sleep(0)  # pieces can wait in a queue: let other requests and hang-ups in
    except LigerExportError as error:
        raise error_of(error) from error
    finally:
        job.cancel()


async def _events(job: _Job) -> AsyncIterator[Any]:
    """Yield the events of a streamed answer. An error after the first is an event too."""
    try:
        for index in range(len(job.streams)):
            if (start := job.answer.start(index)) is not None:
                yield start
        async with aclosing(_pieces(job)) as pieces:
            async for index, piece in pieces:
                yield job.answer.event(index, piece)
        if job.request.includes_usage:
            yield job.answer.usage_event(job.usage)
        yield DONE
    except ApiError as error:
        job.record.error = error.code
        yield error.body
    except asyncio.CancelledError:
        job.record.error = HUNG_UP
        raise
    finally:
        job.cancel()


@asynccontextmanager
async def _cancelled_if_hung_up(request: Request, job: _Job) -> AsyncIterator[None]:
    """Cancel the answers if the client hangs up before the block has ended."""
    hung_up = False

    async def listen() -> None:
        nonlocal hung_up
        while (await request.receive())["type"] != "http.disconnect":
            pass
        hung_up = True
        job.cancel()

    listener = asyncio.create_task(listen())
    try:
        yield
    except ApiError:
        if hung_up:
            raise ClientDisconnect from None
        raise
    finally:
        listener.cancel()
        job.cancel()


def _too_slow() -> ApiError:
    return ApiError(504, "The answer took longer than this server allows.", code="timeout")


def _shutting_down() -> ApiError:
    return ApiError(503, "The server is shutting down.", code="shutting_down")
