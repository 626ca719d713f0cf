"""The CUDA driver calls needed to run an engine: managed memory, a stream, captured graphs."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from liger_export.errors import EnvironmentMismatchError

__all__ = ["Cuda", "has_gpu"]

LIBRARY = "libcuda.so.1"
ATTACH_GLOBAL = 1
CAPTURE_THREAD_LOCAL = 1  # other threads may allocate while this one captures
CAPABILITY = (75, 76)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


def has_gpu() -> bool:
    """Return True if the driver finds a GPU."""
    try:
        Cuda.open()
    except EnvironmentMismatchError:
        return False
    return True


@dataclass(slots=True)
class Cuda:
    """The first GPU's primary context, and one stream.

    Attributes:
        driver: The loaded driver library.
        capability: Compute capability of the GPU, such as ``sm89``.
        stream: Handle of the stream.
    """

    driver: Any
    capability: str
    stream: int = 0
    _context: int = 0
    _allocated: list[int] = field(default_factory=list)

    @classmethod
    def open(cls) -> "Cuda":
        """Open the first GPU. Raises EnvironmentMismatchError if there is none."""
        try:
            driver = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise _no_gpu("no NVIDIA driver is installed") from error
        device, context, stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
            raise _no_gpu("the driver finds no GPU")
        numbers = [ctypes.c_int(), ctypes.c_int()]
        for number, attribute in zip(numbers, CAPABILITY, strict=True):
            driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
        cuda = cls(driver, f"sm{numbers[0].value}{numbers[1].value}")
        cuda._require(driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device), "open the GPU")
        cuda._context = context.value or 0
        cuda.use()
        cuda._require(driver.cuStreamCreate(ctypes.byref(stream), 1), "create a stream")
        cuda.stream = stream.value or 0
        return cuda

    def use(self) -> None:
        """Select the GPU for the calling thread, as every thread needs that calls the other methods."""
        self._require(self.driver.cuCtxSetCurrent(ctypes.c_void_p(self._context)), "open the GPU")

    def zeros(self, shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
        """Allocate zeroed managed memory, which host and GPU both access. It is never freed."""
        nbytes = prod(shape) * np.dtype(dtype).itemsize
        address = ctypes.c_uint64()
        done = self.driver.cuMemAllocManaged(ctypes.byref(address), ctypes.c_size_t(nbytes), ATTACH_GLOBAL)
        self._require(done, f"allocate {nbytes:,} bytes")
        self._allocated.append(address.value)
        memory = (ctypes.c_uint8 * nbytes).from_address(address.value)
        array: npt.NDArray[Any] = np.ctypeslib.as_array(memory).view(dtype).reshape(shape)
        array.fill(0)
        return array

    def copy(self, source: npt.NDArray[Any], target: npt.NDArray[Any]) -> None:
        """Copy between two arrays from ``zeros`` on the stream, or into the graph that is being captured."""
        addresses = (ctypes.c_uint64(each.ctypes.data) for each in (target, source))
        stream = ctypes.c_void_p(self.stream)
        self._require(
            self.driver.cuMemcpyDtoDAsync_v2(*addresses, ctypes.c_size_t(source.nbytes), stream), "copy a state"
        )

    def fetch(self, source: int, target: npt.NDArray[Any]) -> None:
        """Fill an array from an address in the GPU's memory."""
        address, nbytes = ctypes.c_void_p(target.ctypes.data), ctypes.c_size_t(target.nbytes)
        self._require(self.driver.cuMemcpyDtoH_v2(address, ctypes.c_uint64(source), nbytes), "read its memory")

    def store(self, source: npt.NDArray[Any], target: int) -> None:
        """Copy a contiguous array to an address in the GPU's memory."""
        address, nbytes = ctypes.c_void_p(source.ctypes.data), ctypes.c_size_t(source.nbytes)
        self._require(self.driver.cuMemcpyHtoD_v2(ctypes.c_uint64(target), address, nbytes), "write its memory")
        self._require(self.driver.cuStreamSynchronize(None), "write its memory")

    def move(self, source: int, target: int, nbytes: int) -> None:
        """Copy between two addresses in the GPU's memory."""
        addresses = (ctypes.c_uint64(address) for address in (target, source))
        self._require(self.driver.cuMemcpyDtoD_v2(*addresses, ctypes.c_size_t(nbytes)), "copy a state")
        self._require(self.driver.cuStreamSynchronize(None), "copy a state")  # other streams do not wait for the copy

    def replayed(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        """Return a function that does the work of ``enqueue`` on the stream and replays it as a CUDA graph.

        The first call runs ``enqueue`` directly, because libraries may set themselves up then. The second call captures
        it. Every call does the work exactly once.
        """
        graph = ctypes.c_void_p()
        calls = 0

        def launch() -> None:
            nonlocal calls
            calls += 1
            if calls == 1:
                return enqueue()
            if calls == 2:
                self._capture(enqueue, graph)
            return self._require(self.driver.cuGraphLaunch(graph, ctypes.c_void_p(self.stream)), "replay a graph")

        return launch

    def _capture(self, enqueue: Callable[[], None], executable: ctypes.c_void_p) -> None:
        stream, graph = ctypes.c_void_p(self.stream), ctypes.c_void_p()
        self._require(self.driver.cuStreamBeginCapture_v2(stream, CAPTURE_THREAD_LOCAL), "capture a graph")
        enqueue()
        self._require(self.driver.cuStreamEndCapture(stream, ctypes.byref(graph)), "capture a graph")
        instantiate = self.driver.cuGraphInstantiateWithFlags
        self._require(instantiate(ctypes.byref(executable), graph, ctypes.c_ulonglong(0)), "capture a graph")
        self._require(self.driver.cuGraphDestroy(graph), "capture a graph")

    def synchronize(self) -> None:
        """Wait until all work on the stream is done."""
        self._require(self.driver.cuStreamSynchronize(ctypes.c_void_p(self.stream)), "run the engine")

    def _require(self, result: int, what: str) -> None:
        if result:
            raise EnvironmentMismatchError(f"The GPU could not {what} (CUDA error {result}).", "Free GPU memory.")


def _no_gpu(why: str) -> EnvironmentMismatchError:
    return EnvironmentMismatchError(
        f"Running an engine needs an NVIDIA GPU, but {why}.",
        "Copy the directory to a machine with a GPU that its manifest lists, or run the package in ONNX Runtime.",
    )
