"""The ``stock`` lowering: operators that an unmodified ONNX Runtime ships."""

from collections.abc import Mapping

import onnx_ir as ir

from liger_export.errors import UnsupportedModelError
from liger_export.export.fuse import MICROSOFT, fuse_residuals, fuse_transposes, pack_linears
from liger_export.export.integers import quantize
from liger_export.export.weights import DenseWeight, Weight
from liger_export.onnx_functions.schemas import DOMAIN
from liger_export.onnx_functions.stock import stock_function
from liger_export.precision import Scheme

__all__ = ["lower_to_stock"]


def lower_to_stock(model: ir.Model, schemes: Mapping[str, Scheme | None]) -> list[Weight]:
    """Rewrite a traced model in place: give every ``liger`` node a body, fuse nodes and quantize weights.

    Args:
        model: a model from ``trace``.
        schemes: how to quantize each matrix, by checkpoint name; None keeps it in the activations' dtype.

    Returns:
        The weights that the graph now reads, to be written by ``attach_weights``.

    Raises:
        UnsupportedModelError: an operator of a body does not support the model's sizes.
    """
    names = sorted({node.op_type for node in model.graph if node.domain == DOMAIN})
    bodies = {name: ir.serde.deserialize_function(stock_function(name)) for name in names}
    for node in model.graph:
        if node.domain == DOMAIN:
            _check_limits(node, {inner.op_type for inner in bodies[node.op_type]})
    weights = _store_weights(model.graph, schemes)
    fuse_residuals(model.graph)
    for body in bodies.values():
        model.functions[body.identifier()] = body
    model.opset_imports[MICROSOFT] = 1
    return weights


def _store_weights(graph: ir.Graph, schemes: Mapping[str, Scheme | None]) -> list[Weight]:
    fuse_transposes(graph)
    tensors = {name: value for name, value in graph.initializers.items() if value.const_value is None}
    packed = pack_linears(graph, schemes.get)
    inside = {name for weight in packed.values() for name in weight.tensors}
    single = {name: DenseWeight(value, (name,)) for name, value in tensors.items() if name not in inside}
    return quantize(graph, single | packed, schemes)


def _check_limits(node: ir.Node, body_operators: set[str]) -> None:
    """Reject attributes that an operator in the node's body does not support."""
    head_dim = node.attributes.get_int("head_dim", 0)
    if "GroupQueryAttention" in body_operators and head_dim % 8:
        raise UnsupportedModelError(
            f"head_dim is {head_dim}, and ONNX Runtime's GroupQueryAttention needs a multiple of 8.",
            "Run the model in PyTorch, or linearize its base with --mixer lolcats and without --keep-softmax-every.",
        )
    if "LinearAttention" in body_operators and node.attributes.get_float("recurrent_weight", 1.0) == 0:
        raise UnsupportedModelError(
            "recurrent_weight is 0, and ONNX Runtime's LinearAttention reads a scale of 0 as 1/sqrt(head_dim).",
            "Set recurrent_weight in config.json to a value between 0 and 1.",
        )
