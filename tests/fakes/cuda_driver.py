"""A stand-in for the CUDA driver, as ``ctypes`` loads it, that records the names of calls and always succeeds."""

from collections.abc import Callable
from typing import Any


class RecordingDriver:
    """Records the name of each call."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., int]:
        def call(*_: Any) -> int:
            self.calls.append(name)
            return 0

        return call
