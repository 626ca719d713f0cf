"""The ``cuda`` lowering: the fused graph with each linear layer, its norm and its residual in one operator, for GPUs.

A decoder layer is five operators, four linear layers and the attention, and each is one kernel launch per token.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from liger_export.config import LigerConfig
from liger_export.export.fuse import linear_layers, present
from liger_export.export.fused import remove_unused
from liger_export.kernels.bundle import pack
from liger_export.kernels.plans import linear_plan
from liger_export.kernels.prebuilt import find_or_build
from liger_export.kernels.shapes import MAX_COLUMNS, AttentionShape, LinearShape
from liger_export.onnx_functions.schemas import DOMAIN

__all__ = ["KERNELS", "attach_kernels", "compiled_kernels", "fuse_for_cuda", "lower_to_cuda"]

KERNELS = "liger.kernels"  # the initializer of compiled GPU kernels
# Index of the input that takes the kernels, per operator, as in the library's ``operators.h`` and ``cuda_linear.cpp``.
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
DENSE = 16  # bits per weight that is not quantized
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
    _unfuse_residuals(graph)
    _normalize_last_positions_only(graph)
    shapes = {}
    for layer in list(_layers(graph)):
        shape = layer.fuse(graph)
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


@dataclass
class _Layer:
    """A matrix product with a weight, and the nodes around it that one operator computes with it.

    Attributes:
        product: FusedMatMul or MatMulNBits.
        weight: the weight inputs in the operator's order: the weight, or integers, scales and zero points.
        shape: the shape that the kernel is compiled for.
        bias: bias of the product, if any.
        norm: weight of the normalization before the product, if any.
        residual: the value added after the product, if any.
        epsilon: of the normalization.
        nodes: the nodes to replace, in order.
    """

    product: ir.Node
    weight: tuple[ir.Value | None, ...]
    shape: LinearShape
    bias: ir.Value | None = None
    norm: ir.Value | None = None
    residual: ir.Value | None = None
    epsilon: float = 0.0
    nodes: list[ir.Node] = field(default_factory=list)

    def fuse(self, graph: ir.Graph) -> LinearShape:
        """Replace the nodes by the operator. Returns its shape."""
        hidden = self._take_before()
        self._take_after(graph)
        name = ("Integer" if self.shape.bits < DENSE else "") + ("Logits" if self.shape.to_float else "Linear")
        attributes: dict[str, int | float | str] = {
            "kernel": linear_plan(self.shape).name,
            "gated": int(self.shape.is_gated),
            "epsilon": self.epsilon,
        }
        if self.shape.bits < DENSE:
            attributes |= {"bits": self.shape.bits, "block_size": self.shape.block_size}
        inputs = [hidden, *self.weight, self.norm, self.bias, self.residual]
        node = ir.node(name, inputs, attributes, domain=DOMAIN, name=self.product.name)
        last = self.nodes[-1]
        ir.convenience.replace_nodes_and_values(graph, last, self.nodes, [node], last.outputs[:1], node.outputs)
        return self.shape

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
        rows = self.shape.rows
        if user.op_type == "GatedSiLU":
            self.shape = replace(self.shape, rows=rows // 2, is_gated=True)
        elif user.op_type == "Cast" and user.attributes.get_int("to", 0) == ir.DataType.FLOAT and self.bias is None:
            self.shape = replace(self.shape, to_float=True)
        elif user.op_type == "Add" and not any(present(value).is_initializer() for value in user.inputs):
            self.residual = next(value for value in user.inputs if value is not output)
        else:
            return
        self.nodes.append(user)


def _layers(graph: ir.Graph) -> Iterator[_Layer]:
    for linear in linear_layers(graph):
        rows, columns = _sizes(linear.weight)
        if columns % TILE == 0 and columns <= MAX_COLUMNS:
            shape = LinearShape(rows, columns)
            yield _Layer(linear.product, (linear.weight,), shape, linear.bias, nodes=linear.nodes)
    for node in list(graph):
        if node.op_type == "MatMulNBits" and node.attributes.get_int("K", 0) <= MAX_COLUMNS:
            inputs = [*node.inputs, None, None, None][:6]
            sizes = {name: node.attributes.get_int(name, 0) for name in ("N", "K", "bits", "block_size")}
            shape = LinearShape(sizes["N"], sizes["K"], sizes["bits"], sizes["block_size"])
            yield _Layer(node, tuple(inputs[1:4]), shape, inputs[5], nodes=[node])


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
