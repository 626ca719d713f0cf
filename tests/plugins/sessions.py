"""Sessions of the attention operators in ONNX Runtime with the project's operator library, and calls of them."""

from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from liger_export.kernels.shapes import KERNEL_MIXERS
from liger_export.onnx_functions.schemas import DOMAIN, OPSET
from liger_export.ort import library_path
from tests.onnx_functions.sessions import Arrays, attributes_of, shared_feed, zero_states
from tests.ops.cases import Case, Sequences

LIBRARY = library_path()
needs_library = pytest.mark.skipif(LIBRARY is None, reason="needs a C++ compiler when the package is installed")
ONNX_TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


def options_with_library() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 4
    options.register_custom_ops_library(str(LIBRARY))
    return options


@cache
def session(model: bytes) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model, options_with_library(), providers=["CPUExecutionProvider"])


def model_of(case: Case, dtype: str = "float32", *, packed: bool = True, **changes: object) -> bytes:
    """Return a graph of the mixer's operator. ``changes`` replace its attributes."""
    width, half, kv_heads, heads = case.head_dim, case.head_dim // 2, case.num_key_value_heads, case.num_attention_heads
    whole = ["B", "T", (heads + 2 * kv_heads) * width]
    apart = {"query": ["B", "T", heads * width]} | {name: ["B", "T", kv_heads * width] for name in ("key", "value")}
    shapes: dict[str, list[str | int]] = {"query": whole} if packed else apart
    shapes |= {"cos": ["B", "T", half], "sin": ["B", "T", half], "position_ids": ["B", "T"]}
    shapes |= {name: ["B", *shape] for name, shape in case.state_shapes.items()}
    kinds = {"cos": TensorProto.FLOAT, "sin": TensorProto.FLOAT, "position_ids": TensorProto.INT64}
    for name in case.signature.recurrent_states:
        kinds |= {name: TensorProto.FLOAT, f"next_{name}": TensorProto.FLOAT}
    shapes |= {name: list(shape) for name, shape in case.learned_shapes.items()}
    names = [name if name in shapes else "" for name in case.signature.inputs]
    attributes: dict[str, object] = {"gate_normalizer": 1.0, **attributes_of(case)}
    if case.mixer in KERNEL_MIXERS:
        name, attributes = "Attention", {"mixer": case.mixer, **attributes}
    else:
        name = case.signature.onnx_name
    node = helper.make_node(name, names, case.signature.outputs, domain=DOMAIN, **{**attributes, **changes})
    activation = ONNX_TYPES[dtype]
    graph = helper.make_graph(
        [node],
        "attention",
        [helper.make_tensor_value_info(name, kinds.get(name, activation), shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info(name, kinds.get(name, activation), None) for name in case.signature.outputs],
    )
    imports = [helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, OPSET)]
    return bytes(helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString())


def feed_of(inputs: Sequences, positions: np.ndarray, dtype: str = "float32", *, packed: bool = True) -> Arrays:
    """Return all inputs except the states, with q, k and v in one row if ``packed``."""
    feed = shared_feed(inputs, positions)
    feed |= {name: feed[name].astype(dtype) for name in ("query", "key", "value", *inputs.learned)}
    if packed:
        feed["query"] = np.concatenate([feed["query"], feed.pop("key"), feed.pop("value")], axis=-1)
    return feed


def poisoned(states: Arrays, seen: int) -> Arrays:
    """Return states whose unused window rows hold NaN."""
    result = {name: array.copy() for name, array in states.items()}
    for name in ("window_key", "window_value"):
        result[name][:, :, seen:] = np.nan
    return result


def run(
    case: Case, inputs: Sequences, cuts: Sequence[int] = (), dtype: str = "float32", *, packed: bool = True
) -> Arrays:
    """Run sequences in several calls, with unused rows of the window poisoned before each."""
    states = zero_states(case, len(inputs.query))
    states |= {name: states[name].astype(dtype) for name in ("window_key", "window_value")}
    model, outputs = session(model_of(case, dtype, packed=packed)), []
    for start, stop in pairwise((0, *cuts, inputs.length)):
        positions = np.tile(np.arange(start, stop), (len(inputs.query), 1))
        feed = feed_of(inputs.between(start, stop), positions, dtype, packed=packed) | poisoned(states, start)
        output, *nexts = model.run(None, feed)
        outputs.append(output)
        states = dict(zip(case.signature.states, nexts, strict=True))
    return {"output": np.concatenate(outputs, axis=1), **states}
