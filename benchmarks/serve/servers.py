"""Servers in their own processes, and requests to them, for the benchmarks in this folder."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx

__all__ = ["MODEL", "Server", "liger_server", "llama_server", "stream_chat"]

MODEL = "model"
START_SECONDS = 120.0
LLAMA_PORT = 8091
CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class Server:
    """A server and its process."""

    address: str
    process: subprocess.Popen[bytes]

    @property
    def megabytes(self) -> float:
        """Anonymous memory of the process: what it has allocated, without mapped files."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024e-6 for line in lines if line.startswith("RssAnon:"))

    def end(self, ending: signal.Signals = signal.SIGTERM) -> None:
        """End the process with a signal."""
        self.process.send_signal(ending)
        self.process.wait(60)


@contextmanager
def liger_server(package: Path, log: Path, *options: object) -> Iterator[Server]:
    """Serve a package as ``MODEL`` with the command ``liger-export serve``."""
    command = [sys.executable, "-m", "liger_export", "serve", f"{MODEL}={package}", "--port", "0", *map(str, options)]
    with log.open("wb") as errors, _started(command, errors) as process:
        end = time.monotonic() + START_SECONDS
        while "listening on" not in (text := log.read_text()):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"The server has not started: {text}")
            time.sleep(0.02)
        yield Server(text.split("listening on ")[1].split(",")[0], process)


@contextmanager
def llama_server(program: Path, model: Path, log: Path, *options: object) -> Iterator[Server]:
    """Serve a GGUF file with llama.cpp's ``llama-server``."""
    address = f"http://127.0.0.1:{LLAMA_PORT}"
    command = [*map(str, (program, "-m", model, "--port", LLAMA_PORT, "--no-webui", *options))]
    with log.open("wb") as errors, _started(command, errors) as process:
        end = time.monotonic() + START_SECONDS
        while not _answers(address):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"The server has not started: {log.read_text()}")
            time.sleep(0.1)
        yield Server(address, process)


async def stream_chat(client: httpx.AsyncClient, server: Server, body: Mapping[str, Any]) -> AsyncIterator[str]:
    """Yield the pieces of a streamed answer. Raises HTTPStatusError for a refused request."""
    async with client.stream("POST", server.address + CHAT, json={"stream": True, "model": MODEL, **body}) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise RuntimeError(event["error"])
            for choice in event["choices"]:
                if piece := choice["delta"].get("content"):
                    yield piece


@contextmanager
def _started(command: list[str], errors: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command, stdout=errors, stderr=errors) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(60)


def _answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health").status_code == 200
    except httpx.TransportError:
        return False
