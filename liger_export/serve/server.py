"""The server's process: its log, its signals and its end."""

import logging
import signal
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from socket import socket

import uvicorn
from starlette.types import ASGIApp

from liger_export.errors import OutputError
from liger_export.runtime import Session
from liger_export.serve.app import create_app
from liger_export.serve.models import open_models
from liger_export.serve.records import log_to_stderr
from liger_export.serve.settings import ServeSettings

__all__ = ["config_of", "serve"]

KEEP_ALIVE_SECONDS = 75  # longer than clients keep an idle connection, so that they are the ones who close it
ENDINGS = (signal.SIGINT, signal.SIGTERM)


class _Server(uvicorn.Server):
    """Ends in order at SIGINT and SIGTERM, and at once at a second SIGINT. uvicorn's own raises the signal again."""

    def __init__(self, config: uvicorn.Config, started: Callable[[str], None]) -> None:
        super().__init__(config)
        self._tell = started

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        before = {ending: signal.signal(ending, self.handle_exit) for ending in ENDINGS}
        try:
            yield
        finally:
            for ending, handler in before.items():
                signal.signal(ending, handler)

    async def startup(self, sockets: list[socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._tell(f"http://{self.config.host}:{self.servers[0].sockets[0].getsockname()[1]}")


def serve(
    sessions: Mapping[str, Session], settings: ServeSettings, started: Callable[[str], None] = lambda _: None
) -> None:
    """Serve packages until SIGINT or SIGTERM. Answers then go on for up to ``shutdown_seconds``.

    Args:
        sessions: A session of each package by name.
        settings: How to serve them.
        started: Receives the server's address when it listens.

    Raises:
        InputError: The file of keys cannot be read.
        OutputError: The address cannot be listened on, or the state directory cannot be written.
    """
    logging.getLogger("uvicorn.error").handlers = [log_to_stderr()]
    models = open_models(dict(sessions), settings)
    for model in models.values():
        model.warm_up()
    app = create_app(models, settings)
    config = config_of(app, settings)
    server = _Server(config, started)
    try:
        server.run()
    except SystemExit:
        raise OutputError(
            f"{settings.host}:{settings.port} cannot be listened on.", "Choose another --host or --port."
        ) from None


def config_of(app: ASGIApp, settings: ServeSettings) -> uvicorn.Config:
    """Return uvicorn's settings."""
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(settings.shutdown_seconds)),
        lifespan="on",
    )
