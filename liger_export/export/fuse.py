"""Graph rewrites that save nodes and memory traffic, for every precision. Results do not change."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import onnx_ir as ir

from liger_export.export.weights import DenseWeight

__all__ = ["Linear", "fuse_residuals", "fuse_transposes", "linear_layers", "pack_linears", "present"]

MICROSOFT = "com.microsoft"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer in the graph: the product x W^T, and the addition of a bias, if any."""

    product: ir.Node
    addition: ir.Node | None

    @property
    def input(self) -> ir.Value:
        """The activations x."""
        return present(self.product.inputs[0])

    @property
    def weight(self) -> ir.Value:
        """W, [out, in]."""
        return present(self.product.inputs[1])

    @property
    def bias(self) -> ir.Value | None:
        """Bias, [out]."""
        return self.addition.inputs[1] if self.addition else None

    @property
    def nodes(self) -> list[ir.Node]:
        """The layer's nodes, in order."""
        return [self.product, *([self.addition] if self.addition else [])]

    @property
    def output(self) -> ir.Value:
        """The result, [..., out]."""
        return self.nodes[-1].outputs[0]


def fuse_transposes(graph: ir.Graph) -> None:
    """Make x W^T read W as the checkpoint stores it, [out, in], instead of a transposed copy.

    A tied embedding is then one initializer, read by the table and the head.
    """
    for node in list(graph):
        transpose = node.inputs[1].producer() if node.op_type == "MatMul" and node.inputs[1] is not None else None
        if transpose is None or transpose.op_type != "Transpose":
            continue
        product = _product(present(node.inputs[0]), present(transpose.inputs[0]), node.name)
        ir.convenience.replace_nodes_and_values(graph, node, [node], [product], node.outputs, product.outputs)
        if not transpose.outputs[0].uses():
            graph.remove(transpose, safe=True)


def linear_layers(graph: ir.Graph) -> Iterator[Linear]:
    """Yield every linear layer of a graph after ``fuse_transposes``."""
    for node in list(graph):
        if node.op_type == "FusedMatMul" and present(node.inputs[1]).is_initializer():
            users = [use.node for use in node.outputs[0].uses()]
            is_bias = len(users) == 1 and users[0].op_type == "Add" and present(users[0].inputs[1]).is_initializer()
            yield Linear(node, users[0] if is_bias else None)


def pack_linears(graph: ir.Graph, kind: Callable[[str], Hashable]) -> dict[str, DenseWeight]:
    """Merge linear layers that read the same activations into one product: q, k and v; gate and up.

    Args:
        graph: a graph after ``fuse_transposes``.
        kind: maps a weight's name to a key; only weights with equal keys are merged.

    Returns:
        The new initializers, by name.
    """
    groups: dict[Hashable, list[Linear]] = defaultdict(list)
    for linear in linear_layers(graph):
        key = (linear.input, linear.addition is None, kind(str(linear.weight.name)))
        groups[key].append(linear)
    stored: dict[str, DenseWeight] = {}
    for group in groups.values():
        if len(group) > 1:
            _pack(graph, group, stored)
    return stored


def _pack(graph: ir.Graph, group: list[Linear], stored: dict[str, DenseWeight]) -> None:
    weight = _stacked(graph, [linear.weight for linear in group], stored)
    new = [_product(group[0].input, weight, f"{weight.name}.product")]
    if group[0].addition is not None:
        bias = _stacked(graph, [present(linear.bias) for linear in group], stored)
        new.append(ir.node("Add", [new[-1].outputs[0], bias], name=f"{weight.name}.addition"))
    rows = np.array([_rows(linear.weight) for linear in group], dtype=np.int64)
    sizes = ir.Value(name=f"{weight.name}.sizes", const_value=ir.tensor(rows, name=f"{weight.name}.sizes"))
    graph.register_initializer(sizes)
    inputs = [new[-1].outputs[0], sizes]
    new.append(ir.node("Split", inputs, {"axis": -1}, num_outputs=len(group), name=f"{weight.name}.split"))
    old_nodes = [node for linear in group for node in linear.nodes]
    old_values = [linear.output for linear in group]
    unused = [value for linear in group for value in (linear.weight, linear.bias) if value is not None]
    ir.convenience.replace_nodes_and_values(graph, group[0].product, old_nodes, new, old_values, new[-1].outputs)
    for value in unused:
        graph.initializers.pop(str(value.name))


def _stacked(graph: ir.Graph, parts: list[ir.Value], stored: dict[str, DenseWeight]) -> ir.Value:
    """Stack several initializers into one, named after all of them: ``...q_proj+k_proj+v_proj.weight``."""
    names = tuple(str(part.name) for part in parts)
    prefix, _, kind = names[0].rpartition(".")
    parent = prefix.rpartition(".")[0]
    name = f"{parent}.{'+'.join(name.split('.')[-2] for name in names)}.{kind}"
    shape = ir.Shape([sum(_rows(part) for part in parts), *present(parts[0].shape).numpy()[1:]])
    value = ir.Value(name=name, shape=shape, type=parts[0].type)
    graph.initializers[name] = value
    stored[name] = DenseWeight(value, names)
    return value


def fuse_residuals(graph: ir.Graph) -> None:
    """Fuse each addition to the residual stream with the normalization that follows it.

    RMSNormalization(x + y) becomes SkipSimplifiedLayerNormalization, whose fourth output is x + y.
    """
    for node in list(graph):
        total = present(node.inputs[0]) if node.op_type == "RMSNormalization" else None
        addition = total.producer() if total is not None else None
        if total is None or addition is None or addition.op_type != "Add":
            continue
        if any(present(value).is_initializer() for value in addition.inputs):
            continue
        epsilon = node.attributes.get_float("epsilon", 1e-5)
        inputs = [*addition.inputs, node.inputs[1]]
        fused = ir.node(
            "SkipSimplifiedLayerNormalization",
            inputs,
            {"epsilon": epsilon},
            domain=MICROSOFT,
            num_outputs=4,
            name=node.name,
        )
        old_values = [total, node.outputs[0]]
        new_values = [fused.outputs[3], fused.outputs[0]]
        for unused in fused.outputs[1:3]:
            unused.name = ""
        ir.convenience.replace_nodes_and_values(graph, addition, [addition, node], [fused], old_values, new_values)


def _product(activations: ir.Value, weight: ir.Value, name: str | None) -> ir.Node:
    return ir.node("FusedMatMul", [activations, weight], {"transB": 1}, domain=MICROSOFT, name=name)


def _rows(value: ir.Value) -> int:
    return int(present(value.shape).numpy()[0])


def present(value: T | None) -> T:
    """A value that every traced graph has. Raises TypeError if it is None."""
    if value is None:
        raise TypeError("the traced graph lacks a value that this node needs")
    return value
