"""The shared library of ONNX Runtime operators that the ``fused`` lowering uses. Importing it loads nothing.

- ``ort_api.h``: the part of ONNX Runtime's C interface that is used; ``ort_kernel.h``: the same as C++;
- ``operators.h``: the operators' attributes, tensors and shapes;
- ``cpu_attention.cpp``: the CPU kernels; ``cuda_operators.cpp``: launches of the compiled Triton kernels;
- ``candidates.h``, ``cpu_candidates.cpp``, ``cuda_candidates.cpp``: the likeliest tokens, on either;
- ``library.cpp``: what ONNX Runtime calls.
"""
