"""The application: its routes, and what happens around each request."""

import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from hashlib import sha256
from importlib.resources import files

from anyio import to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from liger_export.serve.endpoints import Endpoints
from liger_export.serve.errors import ApiError
from liger_export.serve.metrics import Metrics
from liger_export.serve.models import ServedModel
from liger_export.serve.records import HUNG_UP, LOGGER, Record, record_of, set_record
from liger_export.serve.responses import Json
from liger_export.serve.settings import ServeSettings

__all__ = ["create_app"]

PAGE = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
PAGE_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src data:; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
METRICS = "/metrics"
GUARDED = ("/v1/", METRICS)
PLAIN = "text/plain; version=0.0.4; charset=utf-8"


def create_app(models: Mapping[str, ServedModel], settings: ServeSettings) -> Starlette:
    """Return an ASGI application that serves models, and closes them when it is shut down.

    Raises:
        InputError: The file of keys cannot be read.
    """
    endpoints, metrics = Endpoints(models, settings), Metrics(models)

    async def show_metrics(_: Request) -> Response:
        return Response(metrics.text(), media_type=PLAIN)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        for model in models.values():
            await to_thread.run_sync(model.close)

    routes = [
        Route("/v1/chat/completions", endpoints.chat, methods=["POST"]),
        Route("/v1/completions", endpoints.completions, methods=["POST"]),
        Route("/v1/models", endpoints.list_models),
        Route("/v1/models/{name}", endpoints.model),
        Route("/health", endpoints.health),
        Route(METRICS, show_metrics),
        *(Route(path, _page(*page)) for path, page in PAGE.items()),
    ]
    keys = settings.read_api_keys()
    paths = {route.path for route in routes}
    return Starlette(
        routes=routes,
        middleware=[Middleware(_Recorded, metrics=metrics, paths=paths), Middleware(_Guarded, keys=keys)],
        exception_handlers={ApiError: _api_error, HTTPException: _http_error},
        lifespan=lifespan,
    )


class _Recorded:
    """Logs and counts requests, and turns unexpected exceptions into a response."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: set[str]) -> None:
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self._paths else "other"  # a path can hold anything
        record = Record(scope["method"], path, self._metrics.count)
        set_record(scope, record)

        async def recording(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, recording)
        except ClientDisconnect:
            record.error = HUNG_UP
        except Exception:
            record.error = "internal_error"
            LOGGER.exception("failed", extra={"values": {"request": record.request}})
            if record.status is not None:
                raise
            await ApiError(500, "The server has failed. Its log says where.", code="internal_error").response()(
                scope, receive, recording
            )
        finally:
            record.log()


class _Guarded:
    """Refuses requests without a key. All keys are compared, each in constant time."""

    def __init__(self, app: ASGIApp, keys: tuple[str, ...]) -> None:
        self._app, self._digests = app, [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_guarded = scope["type"] == "http" and self._digests and scope["path"].startswith(GUARDED)
        if is_guarded and not self._has_key(dict(scope["headers"]).get(b"authorization", b"")):
            error = ApiError(401, "Send a key of this server, as 'Authorization: Bearer KEY'.", code="invalid_api_key")
            await error.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _has_key(self, header: bytes) -> bool:
        scheme, _, key = header.partition(b" ")
        sent = _digest(key.strip())
        matches = [hmac.compare_digest(sent, digest) for digest in self._digests]
        return scheme.lower() == b"bearer" and any(matches)


def _digest(key: bytes) -> bytes:
    return sha256(key).digest()


def _page(name: str, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    content = files("liger_export.serve").joinpath("page", name).read_bytes()

    async def page(_: Request) -> Response:
        return Response(content, media_type=media_type, headers=PAGE_HEADERS)

    return page


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    record_of(request).error = error.code
    return error.response()


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = "not_found" if error.status_code == 404 else "invalid_request"
    record_of(request).error = code
    response: Json = ApiError(error.status_code, f"{error.detail}.", code=code).response()
    response.headers.update(error.headers or {})
    return response
