"""The graph of a package for Triton Inference Server: its inputs are tokens and states only."""

from onnx import ModelProto, TensorProto, ValueInfoProto
from onnx.helper import make_tensor_value_info
from onnx.parser import parse_node

__all__ = ["PAST_POSITION", "PRESENT_POSITION", "count_positions"]

PAST_POSITION, PRESENT_POSITION = "past_position", "present_position"  # number of tokens read, int64 [batch, 1]
REPLACED = ("position_ids", "logits_to_keep")
NODES = (
    "liger_length = Shape <start = 1> (input_ids)",
    "liger_scalar_length = Squeeze (liger_length)",
    "liger_zero = Constant <value = int64 {0}> ()",
    "logits_to_keep = Constant <value = int64 {1}> ()",
    "liger_offsets = Range (liger_zero, liger_scalar_length, logits_to_keep)",
    f"position_ids = Add ({PAST_POSITION}, liger_offsets)",
    f"{PRESENT_POSITION} = Add ({PAST_POSITION}, liger_length)",
)


def count_positions(model: ModelProto, length: int | None) -> None:
    """Make a package's graph count its positions in a state, and compute the last token's logits only.

    Triton has no other input that holds positions, and its inputs all have a batch dimension, which ``logits_to_keep``
    lacks.

    Args:
        model: The stock graph, which is changed.
        length: Number of tokens of a call; None for any number.
    """
    graph = model.graph
    kept = [value for value in graph.input if value.name not in REPLACED]
    del graph.input[:]
    graph.input.extend([*kept, make_tensor_value_info(PAST_POSITION, TensorProto.INT64, ["batch", 1])])
    graph.output.append(make_tensor_value_info(PRESENT_POSITION, TensorProto.INT64, ["batch", 1]))
    values = {value.name: value for value in (*graph.input, *graph.output)}
    _fix_second_dimension(values["logits"], 1)  # Triton compares the shapes of outputs exactly
    if length is not None:
        _fix_second_dimension(values["input_ids"], length)
    nodes = [parse_node(text) for text in NODES]
    nodes += graph.node
    del graph.node[:]
    graph.node.extend(nodes)


def _fix_second_dimension(value: ValueInfoProto, size: int) -> None:
    value.type.tensor_type.shape.dim[1].dim_value = size
