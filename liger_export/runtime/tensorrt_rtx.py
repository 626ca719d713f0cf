"""Run engines built by TensorRT for RTX: bound once, on one stream, each call replayed as a CUDA graph."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from liger_export.errors import EnvironmentMismatchError, PackageError
from liger_export.package.engines import EngineRecord
from liger_export.runtime.cuda import Cuda

__all__ = ["TensorRTGraphs"]


class TensorRTGraphs:
    """The engines of one directory, in memory that host and GPU share. See ``fixed.FixedGraphs``.

    State is never read by the host between calls, so its pages stay on the GPU; logits come over as they are read.
    """

    def __init__(self, library: Any, cuda: Cuda, engines: Mapping[int, Any]) -> None:
        self._library = library
        self._cuda = cuda
        self._engines = engines

    @classmethod
    def open(cls, directory: Path, record: EngineRecord) -> "TensorRTGraphs":
        """Load the engines onto the first GPU.

        Raises:
            EnvironmentMismatchError: the library is missing or of another version, or the GPU is none of the targets.
            PackageError: the library does not take an engine.
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
                raise PackageError(f"TensorRT-RTX does not load {directory / name}.", "Build the engines again.")
        return cls(library, cuda, engines)

    def zeros(self, shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
        """As ``FixedGraphs``."""
        return self._cuda.zeros(shape, dtype)

    def bind(self, length: int, tensors: Mapping[str, npt.NDArray[Any]]) -> Callable[[], None]:
        """As ``FixedGraphs``; a context of its own keeps the addresses, and the CUDA graph captured with them."""
        engine = self._engines[length]
        options = engine.create_runtime_config()
        options.cuda_graph_strategy = self._library.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        context = engine.create_execution_context(options)
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            context.set_tensor_address(name, tensors[name].ctypes.data)

        def run() -> None:
            if not context.execute_async_v3(self._cuda.stream):
                raise EnvironmentMismatchError("TensorRT-RTX did not run the engine.", "Free memory of the GPU.")
            self._cuda.synchronize()

        return run


def _library(record: EngineRecord) -> Any:
    try:
        import tensorrt_rtx
    except ImportError as error:
        raise EnvironmentMismatchError(
            f"TensorRT-RTX cannot be loaded ({error}).",
            f"Run: pip install 'tensorrt-rtx=={record.backend_version}'",
        ) from error
    installed = tensorrt_rtx.__version__
    if installed != record.backend_version:
        raise EnvironmentMismatchError(
            f"The engines were built by TensorRT-RTX {record.backend_version}; {installed} is installed.",
            f"Run: pip install 'tensorrt-rtx=={record.backend_version}', or build them again.",
        )
    return tensorrt_rtx
