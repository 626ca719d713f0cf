"""The fused graph's linear layers for CPUs: one operator computes a quantized layer, its norm and its residual."""

import onnx_ir as ir

from liger_export.export.fuse import fuse_residuals
from liger_export.export.fused import remove_unused
from liger_export.export.linears import integer_layers, separate_norms

__all__ = ["fuse_for_cpu"]


def fuse_for_cpu(graph: ir.Graph) -> None:
    """Fuse the quantized linear layers of a fused graph. The weights stay.

    The operator reads them where they lie in the mapped file; ONNX Runtime's own products repack them into memory.
    Layers whose weights are not quantized do not change.
    """
    layers = list(integer_layers(graph))
    if not layers:
        return
    separate_norms(graph)
    for layer in layers:
        layer.fuse(graph)
    fuse_residuals(graph)  # those of the other layers
    remove_unused(graph)
