"""Which states a graph may update in place: the caller then passes one buffer as past and as present."""

import onnx_ir as ir

__all__ = ["in_place_states"]

# They read all they need of a past state before they write its successor over it.
UPDATES_IN_PLACE = ("LinearAttention", "GroupQueryAttention")


def in_place_states(model: ir.Model) -> list[str]:
    """Names of the past states that only the operator that gives their successor reads.

    Args:
        model: after ``lower``. A node of the graph takes and gives the states of its layer, and a model-local
            function is its body.
    """
    names = []
    for node in model.graph:
        body = model.functions.get(node.op_identifier())
        if body is None:
            continue
        inside = dict(zip(node.inputs, body.inputs, strict=False))
        for value, parameter in inside.items():
            if value is not None and value in model.graph.inputs and _is_only_updated(parameter, body):
                names.append(str(value.name))
    return names


def _is_only_updated(past: ir.Value, body: ir.Function) -> bool:
    uses = list(past.uses())
    if len(uses) != 1 or uses[0].node.op_type not in UPDATES_IN_PLACE:
        return False
    successors = {str(value.name) for value in uses[0].node.outputs if value in body.outputs}
    return f"next_{past.name}" in successors
