"""GPU kernels of the ``liger::`` operators. Empty so far: the operators run in PyTorch and in stock ONNX Runtime."""
