"""The additional manifest entries of an engine directory. Imports no torch.

An engine directory is another form of a package: graphs for a fixed number of tokens of one sequence, built for named
devices. It has the package's state table, with the window in the engine's activation dtype.
"""

from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "BACKENDS",
    "CHECK_TOKENS",
    "LAYERS_SUFFIX",
    "LOG_FILE",
    "ONNX",
    "PREFILL_TOKENS",
    "TENSORRT",
    "TENSORRT_RTX",
    "EngineRecord",
    "graph_names",
]

ONNX = "onnx"
TENSORRT = "tensorrt"
TENSORRT_RTX = "tensorrt-rtx"
BACKENDS = {ONNX: ".onnx", TENSORRT_RTX: ".engine", TENSORRT: ".engine"}  # with the suffix of their files
PREFILL_TOKENS = 128  # tokens per prefill call
CHECK_TOKENS = 192  # tokens on which the graphs are compared with their package
STEP, PREFILL = "step", "prefill"
LAYERS_SUFFIX = ".layers.json"
LOG_FILE = "build.log"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRecord:
    """The build record of an engine directory.

    Attributes:
        backend: a key of ``BACKENDS``.
        backend_version: version of the library that built it.
        targets: devices it runs on, such as ``sm86``; empty if it runs on any device.
        activations: dtype of activations and window.
        chunk: tokens per prefill call; 0 if there is only a one-token graph.
        package_sha256: SHA-256 of the manifest of the source package.
        precisions: precision of each kind of tensor and computation, by its description.
        plugins: operators that are plugins in the one-token graph.
        graphs: build time in seconds and file size in bytes of each graph.
        check: comparison of the source graphs with the package on ONNX Runtime; None if it was skipped.
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
        """Map the number of tokens that each graph takes to its file."""
        return {length: name + BACKENDS[self.backend] for length, name in graph_names(self.chunk).items()}


def graph_names(chunk: int) -> dict[int, str]:
    """Map the number of tokens that each graph takes to its name."""
    return {1: STEP, **({chunk: PREFILL} if chunk else {})}
