"""Run engines built by TensorRT or TensorRT for RTX: bound once, on one stream, replayed as CUDA graphs."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from liger_export.errors import EnvironmentMismatchError, PackageError
from liger_export.package.engines import TENSORRT, TENSORRT_RTX, EngineRecord
from liger_export.runtime.buffers import Array
from liger_export.runtime.cuda import Cuda

__all__ = ["TensorRTGraphs"]

MODULES = {TENSORRT: "tensorrt", TENSORRT_RTX: "tensorrt_rtx"}
INSTALL = {
    TENSORRT: "pip install --extra-index-url https://pypi.nvidia.com 'tensorrt=={}'",
    TENSORRT_RTX: "pip install 'tensorrt-rtx=={}'",
}


class TensorRTGraphs:
    """The engines of one directory, with tensors in managed memory. See ``fixed.FixedGraphs``.

    The host does not read the state between calls, so its pages stay on the GPU. Logits migrate when they are read.
    """

    def __init__(self, library: Any, cuda: Cuda, engines: Mapping[int, Any]) -> None:
        self._library = library
        self._cuda = cuda
        self._engines = engines

    @classmethod
    def open(cls, directory: Path, record: EngineRecord) -> "TensorRTGraphs":
        """Load the engines onto the first GPU.

        Raises:
            EnvironmentMismatchError: The library is missing or has another version, or the GPU is not a target.
            PackageError: The library cannot load an engine.
        """
        library = _library(record)
        cuda = Cuda.open()
        if cuda.capability not in record.targets:
            raise EnvironmentMismatchError(
                f"The engines were built for {', '.join(record.targets)}; this GPU is {cuda.capability}.",
                f"Build them again with --sm {cuda.capability.removeprefix('sm')}.",
            )
        runtime = library.Runtime(library.Logger(library.Logger.ERROR))
        engines = {}
        for length, name in record.files.items():
            engines[length] = runtime.deserialize_cuda_engine((directory / name).read_bytes())
            if engines[length] is None:
                raise PackageError(f"{record.backend} cannot load {directory / name}.", "Build the engines again.")
        return cls(library, cuda, engines)

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Array:
        """See ``FixedGraphs``."""
        return self._cuda.zeros(shape, dtype)

    def bind(
        self, length: int, tensors: Mapping[str, Array], copies: Sequence[tuple[Array, Array]] = ()
    ) -> Callable[[], None]:
        """See ``FixedGraphs``. Each binding has its own context, for its addresses and its captured CUDA graph."""
        context, captures_itself = self._context(self._engines[length])
        engine = self._engines[length]
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            context.set_tensor_address(name, tensors[name].ctypes.data)

        def enqueue() -> None:
            if not context.execute_async_v3(self._cuda.stream):
                raise EnvironmentMismatchError("TensorRT could not run the engine.", "Free GPU memory.")
            for source, target in copies:
                self._cuda.copy(source, target)

        launch = enqueue if captures_itself else self._cuda.replayed(enqueue)

        def run() -> None:
            launch()
            self._cuda.synchronize()

        return run

    def _context(self, engine: Any) -> tuple[Any, bool]:
        """Return an execution context, and whether the library captures CUDA graphs itself."""
        if not hasattr(self._library, "CudaGraphStrategy"):
            return engine.create_execution_context(), False
        options = engine.create_runtime_config()
        options.cuda_graph_strategy = self._library.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return engine.create_execution_context(options), True


def _library(record: EngineRecord) -> Any:
    name, install = record.backend, INSTALL[record.backend].format(record.backend_version)
    try:
        library = importlib.import_module(MODULES[name])
    except (ImportError, OSError) as error:
        raise EnvironmentMismatchError(f"{name} cannot be loaded ({error}).", f"Run: {install}") from error
    if library.__version__ != record.backend_version:
        raise EnvironmentMismatchError(
            f"The engines were built with {name} {record.backend_version}, but {library.__version__} is installed.",
            f"Run: {install}, or build the engines again.",
        )
    return library
