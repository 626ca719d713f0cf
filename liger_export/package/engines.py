"""What the manifest of an engine directory says beyond a package's. Imports no torch.

An engine directory is a package in another form: graphs of a fixed number of tokens, for one sequence, built for named
devices. Its state table is the package's, in the activations that the engine computes in.
"""

from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "BACKENDS",
    "CHECK_TOKENS",
    "CHUNK",
    "LAYERS",
    "LOG_FILE",
    "ONNX",
    "TENSORRT",
    "TENSORRT_RTX",
    "EngineRecord",
    "graph_names",
]

ONNX = "onnx"
TENSORRT = "tensorrt"
TENSORRT_RTX = "tensorrt-rtx"
BACKENDS = {ONNX: ".onnx", TENSORRT_RTX: ".engine", TENSORRT: ".engine"}  # and the ending of their files
CHUNK = 128  # tokens of a prefill call
CHECK_TOKENS = 192  # that graphs are compared with their package on
STEP, PREFILL = "step", "prefill"
LAYERS = ".layers.json"
LOG_FILE = "build.log"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRecord:
    """How an engine directory was built.

    Attributes:
        backend: a key of ``BACKENDS``.
        backend_version: of the library that built it.
        targets: devices it runs on, such as ``sm86``; empty if it runs on any.
        activations: dtype of activations and window.
        chunk: tokens of a prefill call; 0 if there is only the graph of one token.
        package_sha256: of the manifest of the package it was built from.
        plugins: operators that are plugins in the graph of one token.
        precisions: what is computed and stored in which precision, by what it is.
        graphs: per graph, seconds it took to build, and the bytes of its file.
        check: how the graphs that were built from compare with the package on ONNX Runtime; None if that was not asked.
    """

    backend: str
    backend_version: str
    targets: list[str]
    activations: str
    chunk: int
    package_sha256: str
    precisions: dict[str, str]
    plugins: list[str] = field(default_factory=list)
    graphs: dict[str, dict[str, float]] = field(default_factory=dict)
    check: dict[str, Any] | None = None

    @property
    def files(self) -> dict[int, str]:
        """File of each graph by the tokens it takes."""
        return {length: name + BACKENDS[self.backend] for length, name in graph_names(self.chunk).items()}


def graph_names(chunk: int) -> dict[int, str]:
    """Name of each graph by the tokens it takes."""
    return {1: STEP, **({chunk: PREFILL} if chunk else {})}
