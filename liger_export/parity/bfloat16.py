"""A package's stock graph as a CPU can run it, though ONNX Runtime computes no bfloat16 there.

Kernels that do, on a GPU, read bfloat16, sum in float32 and round what they give. So each operator of the graph is made
to do this: its inputs are widened to float32, exactly, and its outputs rounded. The package's weights, graph and state
are measured so; its fused graph and GPU kernels are not.
"""

from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from liger_export.ort import ort, session_options
from liger_export.package import MODEL_FILES, STOCK, read_manifest
from liger_export.runtime import Session, load, read_tokenizer
from liger_export.runtime.buffers import CPU

__all__ = ["ROUNDED", "multiply_in_float32", "open_edited", "open_rounded", "open_stock"]

ROUNDED = "cpu, each operator in float32 and rounded to bfloat16"
GRAPH = ir.AttributeType.GRAPH
TO_INTEGERS = ("Shape", "Size", "Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual")
FLOAT, BFLOAT16 = ir.DataType.FLOAT, ir.DataType.BFLOAT16


def open_stock(package: Path) -> Session:
    """A CPU session of a package's stock graph, rounded where it must be."""
    if read_manifest(package).activations == "bfloat16":
        return open_rounded(package)
    return load(package, lowering=STOCK, device=CPU)


def open_rounded(package: Path) -> Session:
    """A CPU session of a bfloat16 package's stock graph, each operator computed in float32 and rounded."""
    model = ir.load(package / MODEL_FILES[STOCK])
    InlinePass()(model)
    multiply_in_float32(model.graph)
    given = (*model.graph.inputs, *model.graph.initializers.values())
    _round(model.graph, {value for value in given if value.dtype == BFLOAT16})
    return open_edited(package, ir.to_proto(model).SerializeToString())


def open_edited(package: Path, graph: bytes) -> Session:
    """A CPU session of a package's stock graph as it was edited in memory, over the package's weights."""
    options = session_options()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(package.resolve()))
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return Session(read_manifest(package), read_tokenizer(package), session, lowering=STOCK, device=CPU)


def multiply_in_float32(graph: ir.Graph) -> None:
    """Let products of integers read activations as they are, which a CPU otherwise rounds to 8 bits."""
    for node in graph:
        if node.op_type == "MatMulNBits":
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", 1)


def _round(graph: ir.Graph, narrow: set[ir.Value]) -> None:
    """Rewrite nodes in place, in order; ``narrow`` are the values of bfloat16, which grow by what they give."""
    for node in list(graph):
        bodies = [attribute.as_graph() for attribute in node.attributes.values() if attribute.type == GRAPH]
        if bodies:
            _round_bodies(node, bodies, narrow)
        elif node.op_type == "Cast":
            narrow |= set(node.outputs) if node.attributes.get_int("to", 0) == BFLOAT16 else set()
        elif node.op_type == "CastLike":
            narrow |= set(node.outputs) if node.inputs[1] in narrow else set()
        elif node.op_type not in TO_INTEGERS and narrow.intersection(node.inputs):
            _round_node(graph, node, narrow)


def _round_bodies(node: ir.Node, bodies: list[ir.Graph], narrow: set[ir.Value]) -> None:
    """Of an If, which reads values from outside, or of a Scan, whose body's inputs are those of the node."""
    for body in bodies:
        narrow |= {inner for inner, outer in zip(body.inputs, node.inputs, strict=False) if outer in narrow}
        _round(body, narrow)
        narrow |= {given for given, inner in zip(node.outputs, body.outputs, strict=True) if inner in narrow}


def _round_node(graph: ir.Graph, node: ir.Node, narrow: set[ir.Value]) -> None:
    """Put a node on float32 between conversions from and to bfloat16."""
    nodes, inputs = [], list(node.inputs)
    for index, value in enumerate(inputs):
        if value in narrow:
            nodes.append(ir.node("Cast", [value], {"to": FLOAT}))
            inputs[index] = nodes[-1].outputs[0]
    wide = ir.Node(node.domain, node.op_type, inputs, node.attributes.values(), num_outputs=len(node.outputs))
    nodes.append(wide)
    for old, new in zip(node.outputs, wide.outputs, strict=True):
        if not old.name:
            new.name = ""  # not asked for
    named = [(old, new) for old, new in zip(node.outputs, wide.outputs, strict=True) if old.name]
    rounded = [ir.node("Cast", [new], {"to": BFLOAT16}) for _, new in named]
    results = [each.outputs[0] for each in rounded]
    narrow |= set(results)
    old_values = [old for old, _ in named]
    ir.convenience.replace_nodes_and_values(graph, node, [node], [*nodes, *rounded], old_values, results)
