"""What ``build-engine`` asks of a library, and the libraries that it knows."""

from collections.abc import Callable
from typing import Protocol

from liger_export.config import LigerConfig
from liger_export.engine.network import Library
from liger_export.engine.tensorrt import TensorRT
from liger_export.engine.tensorrt_rtx import TensorRTRTX
from liger_export.package.engines import TENSORRT, TENSORRT_RTX

__all__ = ["Backend", "open_backend"]


class Backend(Protocol):
    """A library that builds engines, loaded."""

    @property
    def library(self) -> Library:
        """What parses and builds."""

    def require_targets(self, asked: list[str]) -> list[str]:
        """Names of GPU architectures as this project writes them (``sm86``), from numbers or names.

        Raises:
            EngineError: there are none, or the library does not build for one here; says for which it does.
            EnvironmentMismatchError: the library builds on a GPU, and there is none.
        """

    def plugins_for(self, config: LigerConfig, activations: str, targets: list[str]) -> list[str]:
        """The operators of a model, its layers' attention, that plugins compute on these targets."""

    def prepare(self, targets: list[str]) -> None:
        """What is to be done in this process before graphs are built for these targets."""


LIBRARIES: dict[str, Callable[[], Backend]] = {TENSORRT_RTX: TensorRTRTX.open, TENSORRT: TensorRT.open}


def open_backend(name: str) -> Backend:
    """Load a library. Raises EnvironmentMismatchError if it is not installed, or too old."""
    return LIBRARIES[name]()
