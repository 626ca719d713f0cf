"""The ``cuda`` lowering: the fused graph with each linear layer, its norm and its residual in one operator, for GPUs.

A decoder layer is five operators, four linear layers and the attention, and each is one kernel launch per token.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from liger_export.config import LigerConfig
from liger_export.export.fused import remove_unused
from liger_export.export.linears import DENSE, Layer, dense_layers, integer_layers, separate_norms
from liger_export.kernels.bundle import pack
from liger_export.kernels.plans import linear_plan
from liger_export.kernels.prebuilt import find_or_build
from liger_export.kernels.shapes import MAX_COLUMNS, AttentionShape, LinearShape
from liger_export.onnx_functions.schemas import DOMAIN

__all__ = ["KERNELS", "attach_kernels", "compiled_kernels", "fuse_for_cuda", "lower_to_cuda"]

KERNELS = "liger.kernels"  # the initializer of compiled GPU kernels
# Index of the input that takes the kernels, per operator, as in ``operators.h`` and ``linear_signature.h``.
KERNELS_INPUT = {
    "Attention": 9,
    "Candidates": 2,
    "GatedSiLU": 1,
    "MostLikely": 1,
    "RotaryAngles": 2,
    "Linear": 5,
    "Logits": 5,
    "IntegerLinear": 7,
    "IntegerLogits": 7,
}
TILE = 16  # the columns of a dense weight must be a multiple of this


def lower_to_cuda(model: ir.Model, config: LigerConfig, activation: str, targets: Sequence[str]) -> None:
    """Rewrite a fused graph in place for NVIDIA GPUs and add its compiled kernels. The weights stay. Needs no GPU.

    Args:
        model: a model from ``lower_to_fused``.
        config: its config.
        activation: dtype of activations.
        targets: GPU architectures, keys of ``kernels.targets.TARGETS``.

    Raises:
        KernelError: no kernel supports this model's layers, or a target is unknown.
        EnvironmentMismatchError: kernels must be compiled and Triton is not installed.
    """
    linears = fuse_for_cuda(model.graph)
    attach_kernels(model.graph, compiled_kernels(config, activation, targets, linears))


def compiled_kernels(
    config: LigerConfig, activation: str, targets: Sequence[str], linears: Sequence[LinearShape] = ()
) -> bytes:
    """A model's GPU kernels for the given architectures, as a bundle. Raises the errors of ``lower_to_cuda``.

    Kernels for the default shapes are installed with this package; others are compiled here.
    """
    shape = AttentionShape.of_model(config, activation)
    return pack([find_or_build(shape, target, tuple(linears)) for target in targets])


def fuse_for_cuda(graph: ir.Graph) -> list[LinearShape]:
    """Fuse a graph's linear layers. Returns one shape for each distinct kernel that it needs."""
    separate_norms(graph)
    shapes = {}
    for layer in [*dense_layers(graph), *integer_layers(graph)]:
        if not _is_supported(layer):
            continue
        node = layer.fuse(graph)
        shape = LinearShape(
            layer.rows, layer.columns, layer.bits, layer.block_size, is_gated=layer.is_gated, to_float=layer.to_float
        )
        node.attributes["kernel"] = ir.AttrString("kernel", linear_plan(shape).name)
        shapes[linear_plan(shape).name] = shape
    remove_unused(graph)
    return list(shapes.values())


def attach_kernels(graph: ir.Graph, kernels: bytes) -> None:
    """Add compiled kernels as an initializer, and as an input of every operator that launches one."""
    tensor = ir.tensor(np.frombuffer(kernels, dtype=np.uint8), name=KERNELS)
    value = ir.Value(
        name=KERNELS, shape=ir.Shape([len(kernels)]), type=ir.TensorType(ir.DataType.UINT8), const_value=tensor
    )
    graph.register_initializer(value)
    for node in graph:
        place = KERNELS_INPUT.get(node.op_type) if node.domain == DOMAIN else None
        if place is not None:
            node.resize_inputs(place + 1)
            node.replace_input_with(place, value)


def _is_supported(layer: Layer) -> bool:
    return layer.columns <= MAX_COLUMNS and (layer.bits < DENSE or layer.columns % TILE == 0)
