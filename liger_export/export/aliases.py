"""Find the states that a graph updates in place, for which one buffer can be both past and present."""

import onnx_ir as ir

from liger_export.onnx_functions.schemas import DOMAIN

__all__ = ["in_place_states"]

# These operators read all they need of a past state before they overwrite it with the next one.
UPDATES_IN_PLACE = ("LinearAttention", "GroupQueryAttention")
PAST = "past_key_values."


def in_place_states(model: ir.Model) -> list[str]:
    """Names of the past states that no operator reads except the one that computes their next value.

    Args:
        model: a lowered model. Each attention node has the states of its layer as inputs and outputs, and a
            model-local function as its body. The library's operators have no body; on a CPU they update all their
            states in place.
    """
    names = []
    for node in model.graph:
        body = model.functions.get(node.op_identifier())
        if body is None:
            if node.domain == DOMAIN:
                names += [str(value.name) for value in node.inputs if value is not None and _is_past(value, model)]
            continue
        inside = dict(zip(node.inputs, body.inputs, strict=False))
        for value, parameter in inside.items():
            if value is not None and _is_past(value, model) and _is_only_updated(parameter, body):
                names.append(str(value.name))
    return names


def _is_past(value: ir.Value, model: ir.Model) -> bool:
    return value in model.graph.inputs and str(value.name).startswith(PAST)


def _is_only_updated(past: ir.Value, body: ir.Function) -> bool:
    uses = list(past.uses())
    if len(uses) != 1 or uses[0].node.op_type not in UPDATES_IN_PLACE:
        return False
    successors = {str(value.name) for value in uses[0].node.outputs if value in body.outputs}
    return f"next_{past.name}" in successors
