"""Lowerings: what the traced graph's nodes become for an engine. Weights are the same for all of them."""

from collections.abc import Callable, Mapping

import onnx_ir as ir

from liger_export.errors import UnsupportedModelError
from liger_export.export.fuse import MICROSOFT, fuse_residuals, fuse_transposes, pack_linears
from liger_export.export.integers import quantize
from liger_export.export.weights import DenseWeight, Weight
from liger_export.onnx_functions.schemas import DOMAIN
from liger_export.onnx_functions.stock import stock_function
from liger_export.precision import Scheme

__all__ = ["LOWERINGS", "lower"]


def lower(model: ir.Model, lowering: str, schemes: Mapping[str, Scheme | None]) -> list[Weight]:
    """Rewrite a traced model in place.

    Args:
        model: what ``trace`` returned.
        lowering: a key of ``LOWERINGS``; ``stock`` uses operators that an unmodified ONNX Runtime ships.
        schemes: how each matrix is rounded, by its checkpoint name; None for those stored as the activations are.

    Returns:
        The weights that the graph now reads, to be written.

    Raises:
        UnsupportedModelError: there is no such lowering.
    """
    if lowering not in LOWERINGS:
        raise UnsupportedModelError(
            f"There is no lowering {lowering!r}.", f"Choose one of: {', '.join(sorted(LOWERINGS))}."
        )
    return LOWERINGS[lowering](model, schemes)


def _lower_to_stock(model: ir.Model, schemes: Mapping[str, Scheme | None]) -> list[Weight]:
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


def _check_limits(node: ir.Node, uses: set[str]) -> None:
    """Refuse attributes that one of the operators that a node's body ``uses`` cannot take."""
    head_dim = node.attributes.get_int("head_dim", 0)
    if "GroupQueryAttention" in uses and head_dim % 8:
        raise UnsupportedModelError(
            f"head_dim is {head_dim}.",
            "ONNX Runtime's GroupQueryAttention needs a multiple of 8. Run the model in PyTorch, or linearize its base "
            "with --mixer lolcats and no layers that keep softmax.",
        )
    if "LinearAttention" in uses and node.attributes.get_float("recurrent_weight", 1.0) == 0:
        raise UnsupportedModelError(
            "recurrent_weight is 0.", "ONNX Runtime's LinearAttention reads a scale of 0 as 1/sqrt(head_dim)."
        )


LOWERINGS: dict[str, Callable[[ir.Model, Mapping[str, Scheme | None]], list[Weight]]] = {"stock": _lower_to_stock}
