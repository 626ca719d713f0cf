"""bfloat16 on a CPU, where ONNX Runtime has almost no bfloat16 kernels.

Kernels for bfloat16 read it, accumulate in float32 and round their results. Conversions around an operator do the same:
they widen the inputs to float32, which is exact, and round the outputs to bfloat16.
"""

from collections.abc import Collection

import onnx_ir as ir

__all__ = ["compute_in_float32"]

GRAPH = ir.AttributeType.GRAPH
WITHOUT_FLOAT_RESULT = ("Shape", "Size", "Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual")
WITH_FLOAT_STATES = ("Attention", "GSAAttention", "LoLCATsAttention")  # outputs: attended, states, window key and value
WITH_FLOAT_LOGITS = ("Logits", "IntegerLogits")
FLOAT, BFLOAT16 = ir.DataType.FLOAT, ir.DataType.BFLOAT16


def compute_in_float32(graph: ir.Graph, native: Collection[str] = ()) -> None:
    """Rewrite a graph in place so that each operator computes in float32 and rounds its results to bfloat16.

    Inputs, outputs and initializers keep their types. A call of a function counts as one operator.

    Args:
        graph: a graph; without bfloat16 values it does not change.
        native: operators that read and write bfloat16 themselves.
    """
    values = (*graph.inputs, *graph.initializers.values())
    _rewrite(graph, {value for value in values if value.dtype == BFLOAT16}, native)


def _rewrite(graph: ir.Graph, narrow: set[ir.Value], native: Collection[str]) -> None:
    """Rewrite the nodes in order; ``narrow`` holds the bfloat16 values so far and receives those of the nodes."""
    for node in list(graph):
        bodies = [attribute.as_graph() for attribute in node.attributes.values() if attribute.type == GRAPH]
        if bodies:
            _rewrite_bodies(node, bodies, narrow, native)
        elif node.op_type == "Cast":
            narrow |= set(node.outputs) if node.attributes.get_int("to", 0) == BFLOAT16 else set()
        elif node.op_type == "CastLike":
            narrow |= set(node.outputs) if node.inputs[1] in narrow else set()
        elif node.op_type in WITHOUT_FLOAT_RESULT or not narrow.intersection(node.inputs):
            continue
        elif node.op_type in native:
            narrow |= _narrow_outputs(node)
        else:
            _rewrite_node(graph, node, narrow)


def _narrow_outputs(node: ir.Node) -> set[ir.Value]:
    """The bfloat16 outputs of an operator that computes in bfloat16."""
    if node.op_type in WITH_FLOAT_STATES:
        return {node.outputs[0], *node.outputs[-2:]}
    return set() if node.op_type in WITH_FLOAT_LOGITS else set(node.outputs)


def _rewrite_bodies(node: ir.Node, bodies: list[ir.Graph], narrow: set[ir.Value], native: Collection[str]) -> None:
    """Rewrite the branches of an If, which read outer values, or the body of a Scan, which has the node's inputs."""
    for body in bodies:
        narrow |= {inner for inner, outer in zip(body.inputs, node.inputs, strict=False) if outer in narrow}
        _rewrite(body, narrow, native)
        narrow |= {outer for outer, inner in zip(node.outputs, body.outputs, strict=True) if inner in narrow}


def _rewrite_node(graph: ir.Graph, node: ir.Node, narrow: set[ir.Value]) -> None:
    """Replace a node by its float32 form, between casts from and to bfloat16."""
    nodes, inputs = [], list(node.inputs)
    for index, value in enumerate(inputs):
        if value in narrow:
            nodes.append(ir.node("Cast", [value], {"to": FLOAT}))
            inputs[index] = nodes[-1].outputs[0]
    wide = ir.Node(node.domain, node.op_type, inputs, node.attributes.values(), num_outputs=len(node.outputs))
    nodes.append(wide)
    for old, new in zip(node.outputs, wide.outputs, strict=True):
        if not old.name:
            new.name = ""  # an optional output that nobody reads
    named = [(old, new) for old, new in zip(node.outputs, wide.outputs, strict=True) if old.name]
    rounded = [ir.node("Cast", [new], {"to": BFLOAT16}) for _, new in named]
    results = [each.outputs[0] for each in rounded]
    narrow |= set(results)
    old_values = [old for old, _ in named]
    ir.convenience.replace_nodes_and_values(graph, node, [node], [*nodes, *rounded], old_values, results)
