"""Servers for tests: one in a thread of this process, and one in its own process."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from liger_export.runtime import load
from liger_export.serve import ServedModel, ServeSettings, create_app
from liger_export.serve.models import open_models
from liger_export.serve.server import config_of

__all__ = ["MODEL", "Running", "chat_body", "process", "running"]

MODEL = "tiny"


@dataclass(frozen=True)
class Running:
    """A server that runs in this process."""

    address: str
    model: ServedModel


@contextmanager
def running(package: Path, **settings: Any) -> Iterator[Running]:
    """Serve a package in a thread."""
    chosen = ServeSettings(**{"shutdown_seconds": 1.0, "slots": 4, "port": 0, **settings})
    models = open_models({MODEL: load(package)}, chosen)
    server = uvicorn.Server(config_of(create_app(models, chosen), chosen))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Running(f"http://127.0.0.1:{port}", models[MODEL])
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def process(package: Path, *options: object, log: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Serve a package with the command. At the end, the process gets SIGTERM and must end with exit code 0."""
    command = [sys.executable, "-m", "liger_export", "serve", f"{MODEL}={package}", "--port", "0", *map(str, options)]
    with log.open("wb") as errors, subprocess.Popen(command, stderr=errors) as server:
        try:
            while "listening on" not in (text := log.read_text()):
                assert server.poll() is None, text
                time.sleep(0.02)
            yield text.split("listening on ")[1].split(",")[0], server
        finally:
            server.send_signal(signal.SIGTERM)
            assert server.wait(30) == 0


def chat_body(text: str = "Hello", **fields: Any) -> dict[str, Any]:
    """Return a request to ``/v1/chat/completions``."""
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **fields}
