"""Lowerings: what the traced graph's nodes become for an engine. Weights are the same for all of them."""

from collections.abc import Callable

import onnx_ir as ir

from liger_export.errors import UnsupportedModelError
from liger_export.ops.onnx_forms import DOMAIN, stock_function

__all__ = ["LOWERINGS", "lower"]


def lower(model: ir.Model, lowering: str) -> None:
    """Rewrite a traced model in place.

    Args:
        model: what ``trace`` returned.
        lowering: a key of ``LOWERINGS``; ``stock`` uses operators that an unmodified ONNX Runtime ships.

    Raises:
        UnsupportedModelError: there is no such lowering.
    """
    if lowering not in LOWERINGS:
        raise UnsupportedModelError(
            f"There is no lowering {lowering!r}.", f"Choose one of: {', '.join(sorted(LOWERINGS))}."
        )
    LOWERINGS[lowering](model)


def _lower_to_stock(model: ir.Model) -> None:
    names = sorted({node.op_type for node in model.graph if node.domain == DOMAIN})
    bodies = {name: ir.serde.deserialize_function(stock_function(name)) for name in names}
    for node in model.graph:
        if node.domain == DOMAIN:
            _check_limits(node, {inner.op_type for inner in bodies[node.op_type]})
    _fuse_transposed_products(model.graph)
    for body in bodies.values():
        model.functions[body.identifier()] = body
    model.opset_imports["com.microsoft"] = 1


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


LOWERINGS: dict[str, Callable[[ir.Model], None]] = {"stock": _lower_to_stock}


def _fuse_transposed_products(graph: ir.Graph) -> None:
    """Let x W^T read W as the checkpoint stores it, [out, in], instead of a transposed copy.

    A tied embedding then serves as table and as head from one initializer.
    """
    for node in list(graph):
        transpose = node.inputs[1].producer() if node.op_type == "MatMul" and node.inputs[1] is not None else None
        if transpose is None or transpose.op_type != "Transpose":
            continue
        product = ir.node(
            "FusedMatMul",
            inputs=[node.inputs[0], transpose.inputs[0]],
            attributes={"transB": 1},
            domain="com.microsoft",
            name=node.name,
        )
        ir.convenience.replace_nodes_and_values(graph, node, [node], [product], node.outputs, product.outputs)
        if not transpose.outputs[0].uses():
            graph.remove(transpose, safe=True)
