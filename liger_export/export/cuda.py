"""The ``cuda`` lowering: the fused graph with products, normalisations and residuals in one operator each, for GPUs.

A decoder layer is five operators: four linear layers and its attention, each one kernel a token.
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
# Which input of an operator takes it: the library's ``operators.h`` and ``cuda_linear.cpp``.
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
DENSE = 16  # bits of a weight that is no integers
TILE = 16  # columns of a dense weight must be a multiple of it


def lower_to_cuda(model: ir.Model, config: LigerConfig, activation: str, targets: Sequence[str]) -> None:
    """Rewrite a fused graph in place for NVIDIA GPUs, over the same weights, with its kernels compiled. Needs no GPU.

    Args:
        model: what ``lower_to_fused`` has made.
        config: the model's.
        activation: dtype of activations.
        targets: keys of ``kernels.targets.TARGETS``.

    Raises:
        KernelError: no kernel computes this model's layers, or there is no such target.
        EnvironmentMismatchError: kernels have to be compiled, and Triton is not installed.
    """
    linears = fuse_for_cuda(model.graph)
    attach_kernels(model.graph, compiled_kernels(config, activation, targets, linears))


def compiled_kernels(
    config: LigerConfig, activation: str, targets: Sequence[str], linears: Sequence[LinearShape] = ()
) -> bytes:
    """A model's GPU kernels for named architectures, as a bundle. Raises as ``lower_to_cuda``.

    They came with this installation, for the default shapes; others are compiled here.
    """
    shape = AttentionShape.of_model(config, activation)
    return pack([find_or_build(shape, target, tuple(linears)) for target in targets])


def fuse_for_cuda(graph: ir.Graph) -> list[LinearShape]:
    """Rewrite a fused graph's linear layers and rotary angles; returns one layer's shape for each kernel needed."""
    _unfuse_residuals(graph)
    _normalize_last_positions_only(graph)
    _fuse_angles(graph)
    shapes = {}
    for layer in list(_layers(graph)):
        shape = layer.fuse(graph)
        shapes[linear_plan(shape).name] = shape
    remove_unused(graph)
    return list(shapes.values())


def attach_kernels(graph: ir.Graph, kernels: bytes) -> None:
    """Make compiled kernels a constant of the graph, which every operator that runs them reads."""
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
    """A product with a weight, and the nodes around it that its operator computes as well.

    Attributes:
        product: FusedMatMul or MatMulNBits.
        weight: its inputs in the operator's order: the weight, or integers, scales and zero points.
        shape: what its kernel depends on.
        bias: optional, as are norm and residual.
        norm: weight of the normalisation before.
        residual: what is added behind.
        epsilon: of the normalisation.
        nodes: all of them, in order.
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
        """Put the operator in the place of its nodes."""
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
        """Take the normalisation, if there is one; returns what the operator reads."""
        hidden = present(self.product.inputs[0])
        norm = hidden.producer()
        if norm is None or norm.op_type != "RMSNormalization" or not _only_use(hidden):
            return hidden
        self.nodes.insert(0, norm)
        self.norm, self.epsilon = norm.inputs[1], norm.attributes.get_float("epsilon", 1e-5)
        return present(norm.inputs[0])

    def _take_after(self, graph: ir.Graph) -> None:
        """Take what is done with the product."""
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
    """The stock graph's sum with normalisation as two nodes: here the sum belongs to the product before."""
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


def _fuse_angles(graph: ir.Graph) -> None:
    """Cosine and sine of positions times frequencies, in one node."""
    positions = next(value for value in graph.inputs if value.name == "position_ids")
    for cosine in list(graph):
        product = present(cosine.inputs[0]).producer() if cosine.op_type == "Cos" else None
        if product is None or product.op_type != "Mul":
            continue
        frequencies = next((value for value in product.inputs if present(value).is_initializer()), None)
        users = {use.node.op_type: use.node for use in product.outputs[0].uses()}
        if frequencies is None or len(present(frequencies.shape)) != 1 or set(users) != {"Cos", "Sin"}:
            continue
        angles = ir.node("RotaryAngles", [positions, frequencies], domain=DOMAIN, num_outputs=2, name="rotary_angles")
        old = [users[name].outputs[0] for name in ("Cos", "Sin")]
        last = users["Sin"]
        unused = [product, *users.values()]
        ir.convenience.replace_nodes_and_values(graph, last, unused, [angles], old, angles.outputs)


def _only_use(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 else None


def _sizes(value: ir.Value) -> tuple[int, int]:
    rows, columns = present(value.shape).numpy()
    return int(rows), int(columns)
