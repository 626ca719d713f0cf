"""Launches of compiled code through the CUDA driver, as on a machine without Triton. Needs a GPU."""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch

DYNAMIC_SHARED_BYTES = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
TYPES: dict[str, Any] = {"i32": ctypes.c_int32, "fp32": ctypes.c_float}


def launch(
    code: bytes, name: str, grid: Sequence[int], threads: int, shared_bytes: int, arguments: Sequence[tuple[str, Any]]
) -> None:
    """Load a cubin or PTX, run one of its kernels, and wait for it.

    Arguments are pairs of a Triton type and a value. The value of a pointer is a tensor, or None for null.
    """
    driver = ctypes.CDLL("libcuda.so.1")
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    assert driver.cuModuleLoadData(ctypes.byref(module), code) == 0
    assert driver.cuModuleGetFunction(ctypes.byref(function), module, name.encode()) == 0
    assert driver.cuFuncSetAttribute(function, DYNAMIC_SHARED_BYTES, shared_bytes) == 0
    values = [
        ctypes.c_uint64(value.data_ptr() if value is not None else 0) if kind.startswith("*") else TYPES[kind](value)
        for kind, value in arguments
    ]
    addresses = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    assert driver.cuLaunchKernel(function, *grid, threads, 1, 1, shared_bytes, stream, addresses, None) == 0
    torch.cuda.synchronize()
    assert driver.cuModuleUnload(module) == 0
