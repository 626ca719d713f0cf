"""Quantize matrices: products become MatMulNBits, and the embedding table GatherBlockQuantized."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from liger_export.export.fuse import MICROSOFT, Linear, linear_layers
from liger_export.export.weights import DenseWeight, IntegerWeight, Weight, declare_weight
from liger_export.precision import Scheme

__all__ = ["quantize"]

INT8_ACTIVATIONS = 4  # MatMulNBits' accuracy_level for integer products, which run as fast as a CPU reads weights


@dataclass
class _Quantizer:
    """One pass over a graph. A table and a head with the same weight share its initializers."""

    graph: ir.Graph
    dense: dict[str, DenseWeight]
    done: dict[str, IntegerWeight] = field(default_factory=dict)

    def product(self, linear: Linear, scheme: Scheme) -> None:
        """Replace a linear layer."""
        rows, columns = _shape(linear.weight)
        shape = [rows, scheme.blocks(columns), scheme.row_bytes(scheme.block_size)]
        stored = self._stored(linear.weight, scheme, shape)
        optional = [stored.zero_points, None, linear.bias]
        while optional and optional[-1] is None:
            optional.pop()
        attributes = {
            "K": columns,
            "N": rows,
            "bits": scheme.bits,
            "block_size": scheme.block_size,
            "accuracy_level": INT8_ACTIVATIONS,
        }
        inputs = [linear.input, stored.packed[-1], stored.scales, *optional]
        node = ir.node("MatMulNBits", inputs, attributes, domain=MICROSOFT, name=linear.product.name)
        ir.convenience.replace_nodes_and_values(
            self.graph, linear.product, linear.nodes, [node], [linear.output], node.outputs
        )

    def table(self, gather: ir.Node, weight: ir.Value, scheme: Scheme) -> None:
        """Replace the lookup in an embedding table."""
        rows, columns = _shape(weight)
        stored = self._stored(weight, scheme, [rows, scheme.row_bytes(columns)])
        attributes = {"bits": scheme.bits, "block_size": scheme.block_size, "gather_axis": 0, "quantize_axis": 1}
        inputs = [stored.packed[-1], gather.inputs[1], stored.scales]
        if stored.zero_points is not None:
            inputs.append(stored.zero_points)
        node = ir.node("GatherBlockQuantized", inputs, attributes, domain=MICROSOFT, name=gather.name)
        ir.convenience.replace_nodes_and_values(self.graph, gather, [gather], [node], gather.outputs, node.outputs)

    def _stored(self, weight: ir.Value, scheme: Scheme, shape: list[int]) -> IntegerWeight:
        """Declare a weight's integers, with ``shape`` as the last view in ``packed``."""
        name = str(weight.name)
        rows, columns = _shape(weight)
        earlier = self.done.get(name)
        # A second initializer at the same offset: a Reshape would make ONNX Runtime copy the whole table.
        packed = declare_weight(self.graph, f"{name}.packed{len(shape)}d", shape, ir.DataType.UINT8)
        if earlier is None:
            tensors = self.dense[name].tensors
            scales = declare_weight(self.graph, f"{name}.scales", [rows, scheme.blocks(columns)], _dtype(weight))
            zero_points = None
            if not scheme.symmetric:
                shape = [rows, scheme.zero_point_bytes(columns)]
                zero_points = declare_weight(self.graph, f"{name}.zero_points", shape, ir.DataType.UINT8)
            stored = IntegerWeight(tensors, scheme, (packed,), scales, zero_points)
        else:
            stored = replace(earlier, packed=(*earlier.packed, packed))
        self.done[name] = stored
        return stored


def quantize(graph: ir.Graph, dense: dict[str, DenseWeight], schemes: Mapping[str, Scheme | None]) -> list[Weight]:
    """Quantize the products and tables that have a scheme.

    Args:
        graph: a graph after ``pack_linears``.
        dense: every weight of the graph, by initializer name.
        schemes: how to quantize checkpoint tensors, by name; None, or no entry, keeps a tensor as it is.

    Returns:
        Every weight as the graph now reads it, in the order of ``dense``.
    """
    quantizer = _Quantizer(graph, dense)
    for node in list(graph):
        weight = node.inputs[0] if node.op_type == "Gather" else None
        if weight is not None and (scheme := schemes.get(str(weight.name))):
            quantizer.table(node, weight, scheme)
    for linear in linear_layers(graph):
        if scheme := schemes.get(dense[str(linear.weight.name)].tensors[0]):
            quantizer.product(linear, scheme)
    for name in quantizer.done:
        graph.initializers.pop(name)
    return [quantizer.done.get(name, weight) for name, weight in dense.items()]


def _shape(value: ir.Value) -> tuple[int, int]:
    if value.shape is None:
        raise TypeError(f"initializer {value.name} has no shape")
    rows, columns = value.shape.numpy()
    return rows, columns


def _dtype(value: ir.Value) -> ir.DataType:
    if value.dtype is None:
        raise TypeError(f"initializer {value.name} has no type")
    return value.dtype
