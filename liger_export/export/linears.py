"""Linear layers with the norm before and the activation or residual after them in one operator."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from liger_export.export.fuse import linear_layers, present
from liger_export.onnx_functions.schemas import DOMAIN

__all__ = ["DENSE", "Layer", "dense_layers", "integer_layers", "separate_norms"]

DENSE = 16  # bits per weight that is not quantized


@dataclass
class Layer:
    """A matrix product with a weight, and the nodes around it that one operator computes with it.

    Attributes:
        product: FusedMatMul or MatMulNBits.
        weight: the weight inputs in the operator's order: the weight, or integers, scales and zero points.
        rows: rows of the result: of the weight or, if gated, half of them.
        columns: columns of the weight.
        bits: bits per weight; ``DENSE`` for one that is not quantized.
        block_size: columns per scale; 0 for a weight that is not quantized.
        bias: bias of the product, if any.
        norm: weight of the normalization before the product, if any.
        residual: the value added after the product, if any.
        epsilon: of the normalization.
        is_gated: the result is silu(gate) * up.
        to_float: the result is float32 for activations of any dtype.
        nodes: the nodes to replace, in order.
    """

    product: ir.Node
    weight: tuple[ir.Value | None, ...]
    rows: int
    columns: int
    bits: int = DENSE
    block_size: int = 0
    bias: ir.Value | None = None
    norm: ir.Value | None = None
    residual: ir.Value | None = None
    epsilon: float = 0.0
    is_gated: bool = False
    to_float: bool = False
    nodes: list[ir.Node] = field(default_factory=list)

    def fuse(self, graph: ir.Graph) -> ir.Node:
        """Replace the nodes by the operator, which is returned."""
        hidden = self._take_before()
        self._take_after(graph)
        name = ("Integer" if self.bits < DENSE else "") + ("Logits" if self.to_float else "Linear")
        attributes: dict[str, int | float] = {"gated": int(self.is_gated), "epsilon": self.epsilon}
        if self.bits < DENSE:
            attributes |= {"bits": self.bits, "block_size": self.block_size}
        inputs = [hidden, *self.weight, self.norm, self.bias, self.residual]
        node = ir.node(name, inputs, attributes, domain=DOMAIN, name=self.product.name)
        last = self.nodes[-1]
        ir.convenience.replace_nodes_and_values(graph, last, self.nodes, [node], last.outputs[:1], node.outputs)
        return node

    def _take_before(self) -> ir.Value:
        """Include the normalization before the product, if any. Returns the operator's input."""
        hidden = present(self.product.inputs[0])
        norm = hidden.producer()
        if norm is None or norm.op_type != "RMSNormalization" or not _only_use(hidden):
            return hidden
        self.nodes.insert(0, norm)
        self.norm, self.epsilon = norm.inputs[1], norm.attributes.get_float("epsilon", 1e-5)
        return present(norm.inputs[0])

    def _take_after(self, graph: ir.Graph) -> None:
        """Include the node that reads the product: activation, cast or residual, if any."""
        output = self.nodes[-1].outputs[0]
        user = _only_use(output)
        if user is None or output in graph.outputs:
            return
        if user.op_type == "GatedSiLU":
            self.rows, self.is_gated = self.rows // 2, True
        elif user.op_type == "Cast" and user.attributes.get_int("to", 0) == ir.DataType.FLOAT and self.bias is None:
            self.to_float = True
        elif user.op_type == "Add" and not any(present(value).is_initializer() for value in user.inputs):
            self.residual = next(value for value in user.inputs if value is not output)
        else:
            return
        self.nodes.append(user)


def dense_layers(graph: ir.Graph) -> Iterator[Layer]:
    """Yield the layers whose weights are not quantized."""
    for linear in linear_layers(graph):
        rows, columns = _sizes(linear.weight)
        yield Layer(linear.product, (linear.weight,), rows, columns, bias=linear.bias, nodes=linear.nodes)


def integer_layers(graph: ir.Graph) -> Iterator[Layer]:
    """Yield the layers whose weights are quantized."""
    for node in list(graph):
        if node.op_type == "MatMulNBits":
            inputs = [*node.inputs, None, None, None][:6]
            rows, columns, bits, size = (node.attributes.get_int(name, 0) for name in ("N", "K", "bits", "block_size"))
            yield Layer(node, tuple(inputs[1:4]), rows, columns, bits, size, bias=inputs[5], nodes=[node])


def separate_norms(graph: ir.Graph) -> None:
    """Make every norm a separate node, which ``Layer.fuse`` expects, and normalize only the positions that are kept."""
    _unfuse_residuals(graph)
    _normalize_last_positions_only(graph)


def _unfuse_residuals(graph: ir.Graph) -> None:
    """Split the stock graph's fused sum and normalization: here the sum is fused with the product before it."""
    for node in list(graph):
        if node.op_type != "SkipSimplifiedLayerNormalization":
            continue
        addition = ir.node("Add", node.inputs[:2], name=f"{node.name}.sum")
        epsilon = node.attributes.get_float("epsilon", 1e-5)
        norm = _norm(addition.outputs[0], node.inputs[2], epsilon, node.name)
        old = [node.outputs[3], node.outputs[0]]
        new = [addition.outputs[0], norm.outputs[0]]
        ir.convenience.replace_nodes_and_values(graph, node, [node], [addition, norm], old, new)


def _normalize_last_positions_only(graph: ir.Graph) -> None:
    for node in list(graph):
        norm = present(node.inputs[0]).producer() if node.op_type == "LastPositions" else None
        if norm is None or norm.op_type != "RMSNormalization":
            continue
        last = ir.node("LastPositions", [norm.inputs[0], node.inputs[1]], domain=DOMAIN, name=node.name)
        after = _norm(last.outputs[0], norm.inputs[1], norm.attributes.get_float("epsilon", 1e-5), norm.name)
        ir.convenience.replace_nodes_and_values(graph, node, [norm, node], [last, after], node.outputs, after.outputs)


def _norm(hidden: ir.Value, weight: ir.Value | None, epsilon: float, name: str | None) -> ir.Node:
    return ir.node("RMSNormalization", [hidden, weight], {"axis": -1, "epsilon": epsilon, "stash_type": 1}, name=name)


def _only_use(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 else None


def _sizes(value: ir.Value) -> tuple[int, int]:
    rows, columns = present(value.shape).numpy()
    return int(rows), int(columns)
