"""The few calls of the CUDA driver that running an engine takes: memory that host and device share, and a stream."""

import ctypes
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from liger_export.errors import EnvironmentMismatchError

__all__ = ["Cuda", "has_gpu"]

LIBRARY = "libcuda.so.1"
ATTACH_GLOBAL = 1
CAPABILITY = (75, 76)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


def has_gpu() -> bool:
    """Whether the driver finds a GPU."""
    try:
        Cuda.open()
    except EnvironmentMismatchError:
        return False
    return True


@dataclass(slots=True)
class Cuda:
    """The first GPU's primary context, and one stream.

    Attributes:
        driver: the loaded library.
        capability: of the GPU, such as ``sm89``.
        stream: handle of the stream.
    """

    driver: Any
    capability: str
    stream: int = 0
    _allocated: list[int] = field(default_factory=list)

    @classmethod
    def open(cls) -> "Cuda":
        """Take the first GPU. Raises EnvironmentMismatchError if there is none."""
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
        cuda._require(driver.cuCtxSetCurrent(context), "open the GPU")
        cuda._require(driver.cuStreamCreate(ctypes.byref(stream), 1), "create a stream")
        cuda.stream = stream.value or 0
        return cuda

    def zeros(self, shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
        """Zeroed memory that host and device address alike; it lives as long as this object."""
        nbytes = prod(shape) * np.dtype(dtype).itemsize
        address = ctypes.c_uint64()
        done = self.driver.cuMemAllocManaged(ctypes.byref(address), ctypes.c_size_t(nbytes), ATTACH_GLOBAL)
        self._require(done, f"allocate {nbytes:,} bytes")
        self._allocated.append(address.value)
        memory = (ctypes.c_uint8 * nbytes).from_address(address.value)
        array: npt.NDArray[Any] = np.ctypeslib.as_array(memory).view(dtype).reshape(shape)
        array.fill(0)
        return array

    def synchronize(self) -> None:
        """Wait until everything on the stream is done."""
        self._require(self.driver.cuStreamSynchronize(ctypes.c_void_p(self.stream)), "run the engine")

    def _require(self, result: int, what: str) -> None:
        if result:
            raise EnvironmentMismatchError(f"The GPU could not {what} (CUDA error {result}).", "Free its memory.")


def _no_gpu(why: str) -> EnvironmentMismatchError:
    return EnvironmentMismatchError(
        f"An engine runs on an NVIDIA GPU, and {why}.",
        "Copy the directory to a machine with one that its manifest names, or run the package on ONNX Runtime.",
    )
