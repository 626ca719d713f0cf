"""The operators of the ``fused`` lowering for ONNX Runtime, as a shared library. Importing this package loads nothing.

- ``ort_api.h``: the part of ONNX Runtime's C interface in use; ``ort_kernel.h``: a C++ interface to it;
- ``operators.h``: attributes, tensors and shapes of the operators; ``checks.h``: checks of sizes and shapes;
- ``cpu_attention.cpp``: attention on a CPU, with ``vectors.h``;
- ``cpu_linear.cpp``: quantized linear layers on a CPU, with ``linear_rounding.h`` (activations), ``linear_rows.h`` (few
  tokens), ``linear_panels.h`` (many tokens) and ``integers*.h`` (instruction sets);
- ``cpu_instructions.cpp``: the instruction sets of this processor; ``cpu_dispatch.cpp``: selection of the best;
- ``call_memory.h``: memory of a CPU operator's calls;
- ``linear_signature.h``: operators of linear layers; ``cpu_linear_operator.cpp``: the one for a CPU;
- ``cuda_kernels.cpp``: the compiled Triton kernels of a graph; ``cuda_operators.cpp``, ``cuda_linear.cpp``: launches;
- ``cuda_gemm.cpp``: products with many tokens, by cuBLAS;
- ``top_logits.h``, ``cpu_top_logits.cpp``, ``cuda_top_logits.cpp``: the top logits, on CPU and CUDA;
- ``library.cpp``: the entry point for ONNX Runtime.
"""
