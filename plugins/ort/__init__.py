"""The shared library of ONNX Runtime operators that the ``fused`` lowering uses. Importing it loads nothing.

- ``ort_api.h``: the part of ONNX Runtime's C interface that is used; ``ort_kernel.h``: the same as C++;
- ``operators.h``: the operators' attributes, tensors and shapes;
- ``cpu_attention.cpp``: the CPU kernels; ``cuda_operators.cpp``: launches of the compiled Triton kernels;
- ``candidates.h``, ``cpu_candidates.cpp``, ``cuda_candidates.cpp``: the likeliest tokens, on either;
- ``library.cpp``: what ONNX Runtime calls.
"""

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

__all__ = ["library_path"]

NAMES = ("libliger_ort.so", "libliger_ort.dylib")


def library_path() -> Path | None:
    """Where the library lies; None if the package was installed without it, for want of a compiler."""
    folders = [Path(__file__).parent]
    with suppress(PackageNotFoundError):  # an editable installation keeps what it has compiled apart from the sources
        folders.append(Path(str(distribution("liger-export").locate_file("liger_export/plugins/ort"))))
    return next((path for folder in folders for name in NAMES if (path := folder / name).is_file()), None)
