"""The fused graph's linear layers for CPUs: one operator computes a layer, its norm and its residual."""

import onnx_ir as ir

from liger_export.export.fuse import fuse_residuals
from liger_export.export.fused import remove_unused
from liger_export.export.linears import DENSE, Layer, dense_layers, integer_layers, separate_norms

__all__ = ["fuse_for_cpu"]

TILE = 16  # the columns of a float16 weight must be a multiple of this: cpu_linear_operator.cpp


def fuse_for_cpu(graph: ir.Graph) -> None:
    """Fuse the linear layers of a fused graph whose weights are quantized or float16. The weights stay.

    The operators read them where they lie in the mapped file. ONNX Runtime's own products repack quantized weights, and
    convert float16 ones to float32. Layers with float32 weights do not change.
    """
    layers = [layer for layer in (*dense_layers(graph), *integer_layers(graph)) if _is_supported(layer)]
    if not layers:
        return
    separate_norms(graph)
    for layer in layers:
        layer.fuse(graph)
    fuse_residuals(graph)  # those of the other layers
    remove_unused(graph)


def _is_supported(layer: Layer) -> bool:
    weight = layer.weight[0]
    is_float16 = weight is not None and weight.dtype == ir.DataType.FLOAT16
    return layer.bits < DENSE or (is_float16 and layer.columns % TILE == 0)
