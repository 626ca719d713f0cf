"""The fused graph's linear layers for CPUs: one operator computes a layer, its norm and its residual."""

import onnx_ir as ir

from liger_export.export.bfloat16 import compute_in_float32
from liger_export.export.fuse import fuse_residuals
from liger_export.export.fused import remove_unused
from liger_export.export.linears import DENSE, Layer, dense_layers, integer_layers, separate_norms

__all__ = ["fuse_for_cpu"]

TILE = 16  # the columns of a weight that is not quantized must be a multiple of this: cpu_linear_operator.cpp
IN_PLACE = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)  # dtypes of such weights
# Operators that a CPU computes in bfloat16: the library's, and those of ONNX Runtime that only move values.
IN_BFLOAT16 = (
    *("Attention", "GSAAttention", "LoLCATsAttention", "GatedSiLU", "LastPositions"),
    *("Linear", "Logits", "IntegerLinear", "IntegerLogits"),
    *("Concat", "Gather", "Identity", "Reshape", "Split"),
)


def fuse_for_cpu(graph: ir.Graph) -> None:
    """Fuse the linear layers of a fused graph whose weights are quantized, float16 or bfloat16. The weights stay.

    The operators read them where they lie in the mapped file. ONNX Runtime's own products repack quantized weights,
    convert float16 ones to float32, and do not read bfloat16. Layers with float32 weights do not change.

    What else reads bfloat16 computes in float32, between conversions.
    """
    layers = [layer for layer in (*dense_layers(graph), *integer_layers(graph)) if _is_supported(layer)]
    if layers:
        separate_norms(graph)
        for layer in layers:
            layer.fuse(graph)
        fuse_residuals(graph)  # those of the other layers
        remove_unused(graph)
    compute_in_float32(graph, native=IN_BFLOAT16)


def _is_supported(layer: Layer) -> bool:
    weight = layer.weight[0]
    is_read_in_place = weight is not None and weight.dtype in IN_PLACE
    return layer.bits < DENSE or (is_read_in_place and layer.columns % TILE == 0)
