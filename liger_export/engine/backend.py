"""The interface of a library that builds engines, and the libraries that are known."""

from collections.abc import Callable
from typing import Protocol

from liger_export.config import LigerConfig
from liger_export.engine.network import Library
from liger_export.engine.tensorrt import TensorRT
from liger_export.engine.tensorrt_rtx import TensorRTRTX
from liger_export.package.engines import TENSORRT, TENSORRT_RTX

__all__ = ["Backend", "open_backend"]


class Backend(Protocol):
    """A loaded library that builds engines."""

    @property
    def library(self) -> Library:
        """The library that parses and builds."""

    def require_targets(self, asked: list[str]) -> list[str]:
        """Return the names of GPU architectures, such as ``sm86``, for numbers or names.

        Raises:
            EngineError: none was named, or the library does not build for one on this machine; the message lists
                those it builds for.
            EnvironmentMismatchError: the library builds on a GPU and there is none.
        """

    def plugins_for(self, config: LigerConfig, activations: str, targets: list[str]) -> list[str]:
        """Return the attention operators of a model that plugins compute on these targets."""

    def prepare(self, targets: list[str]) -> None:
        """Prepare this process, before it builds graphs for these targets."""


LIBRARIES: dict[str, Callable[[], Backend]] = {TENSORRT_RTX: TensorRTRTX.open, TENSORRT: TensorRT.open}


def open_backend(name: str) -> Backend:
    """Load a library. Raises EnvironmentMismatchError if it is not installed or too old."""
    return LIBRARIES[name]()
