"""The ``genai`` lowering: the stock graph with the inputs and outputs that ONNX Runtime GenAI knows.

GenAI carries two tensors per recurrent layer, ``recurrent_state`` and ``conv_state``. The window's keys and values
become one ``conv_state`` [B, 2 * G, W * D]. The graph returns the logits of the last token, the only ones that GenAI
reads.
"""

from math import prod

import numpy as np
import onnx_ir as ir

from liger_export.config import SOFTMAX, LigerConfig
from liger_export.errors import UnsupportedModelError
from liger_export.state import WINDOW_STATES, by_layer, state_table

__all__ = ["GENAI_MIXERS", "lower_to_genai", "require_genai"]

GENAI_MIXERS = ("gla", "hgrn2")  # a layer has one state beside the window, as in GenAI


def require_genai(config: LigerConfig) -> None:
    """Check that GenAI can carry a model's state. Raises UnsupportedModelError if it cannot."""
    mixers = {config.layer_mixer(layer) for layer in range(config.num_hidden_layers)}
    if unknown := sorted(mixers - set(GENAI_MIXERS)):
        what = "layers that keep softmax attention" if unknown == [SOFTMAX] else f"the mixer {config.mixer}"
        raise UnsupportedModelError(
            f"ONNX Runtime GenAI cannot carry the state of {what}.",
            f"Omit --genai, or linearize with --mixer {' or '.join(GENAI_MIXERS)} in every layer.",
        )


def lower_to_genai(model: ir.Model, config: LigerConfig) -> None:
    """Rewrite a stock graph in place: one ``conv_state`` per layer, and logits of the last token."""
    graph = model.graph
    inputs = {str(value.name): value for value in graph.inputs}
    outputs = {str(value.name): value for value in graph.outputs}
    for states in by_layer(state_table(config), state_table(config)):
        window = [entry for entry in states if entry.name in WINDOW_STATES]
        _pack_past(graph, states[0].layer, [inputs[entry.past_name] for entry in window])
        _pack_present(graph, states[0].layer, [outputs[entry.present_name] for entry in window])
    _keep_last(graph, inputs["logits_to_keep"])


def _pack_past(graph: ir.Graph, layer: int, window: list[ir.Value]) -> None:
    packed, groups, rest = _packed(f"past_key_values.{layer}.conv_state", window)
    shape = _constant(graph, f"window_shape.{layer}", [0, len(window) * groups, *rest])
    unpacked = ir.node("Reshape", [packed, shape])
    split = ir.node("Split", unpacked.outputs, {"axis": 1, "num_outputs": len(window)}, num_outputs=len(window))
    graph.insert_before(graph[0], [unpacked, split])
    for past, part in zip(window, split.outputs, strict=True):
        part.type, part.shape = past.type, past.shape
        past.replace_all_uses_with(part)
        graph.inputs.remove(past)
    graph.inputs.append(packed)


def _pack_present(graph: ir.Graph, layer: int, window: list[ir.Value]) -> None:
    packed, groups, rest = _packed(f"present.{layer}.conv_state", window)
    for present in window:
        graph.outputs.remove(present)
    joined = ir.node("Concat", window, {"axis": 1})
    shape = _constant(graph, f"conv_state_shape.{layer}", [0, len(window) * groups, prod(rest)])
    graph.extend([joined, ir.node("Reshape", [joined.outputs[0], shape], outputs=[packed])])
    graph.outputs.append(packed)


def _packed(name: str, window: list[ir.Value]) -> tuple[ir.Value, int, list[int]]:
    """The packed value [B, 2 * G, W * D], G, and [W, D]. GenAI takes four dimensions for several states in a row."""
    assert window[0].shape is not None
    batch, *fixed = window[0].shape
    groups, *sizes = (size for size in fixed if isinstance(size, int))
    shape = ir.Shape([batch, groups * len(window), prod(sizes)])
    return ir.Value(name=name, type=window[0].type, shape=shape), groups, sizes


def _constant(graph: ir.Graph, name: str, values: list[int]) -> ir.Value:
    data = ir.tensor(np.array(values, np.int64), name=name)
    value = ir.Value(name=name, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([len(values)]), const_value=data)
    graph.initializers[name] = value
    return value


def _keep_last(graph: ir.Graph, count: ir.Value) -> None:
    graph.inputs.remove(count)
    graph.initializers.pop(str(count.name), None)
    count.const_value = ir.tensor(np.array(1, np.int64), name=count.name)
    graph.initializers[str(count.name)] = count
    logits = next(value for value in graph.outputs if value.name == "logits")
    assert logits.shape is not None
    logits.shape = ir.Shape(["batch", 1, logits.shape[2]])
