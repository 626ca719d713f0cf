"""An operator's ONNX form as a session of ONNX Runtime, and calls of it."""

from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from liger_export.onnx_functions.schemas import DOMAIN, OPSET
from liger_export.onnx_functions.stock import stock_function
from tests.ops.cases import Case, Sequences

Arrays = dict[str, np.ndarray]


def attributes_of(case: Case) -> dict[str, float]:
    return {
        "num_heads": case.num_attention_heads,
        **{name: getattr(case, name) for name in ("num_key_value_heads", "head_dim", "window_size")},
        **{name: getattr(case, name) for name in (*case.signature.sizes, *case.signature.options)},
    }


def model_of(case: Case, layers: int = 1) -> onnx.ModelProto:
    """A graph of the operator alone; with more layers, each reads the one before's output as its query."""
    width, half, groups = case.head_dim, case.head_dim // 2, case.num_key_value_heads
    shapes: dict[str, list[str | int]] = {
        "query": ["B", "T", case.num_attention_heads * width],
        "key": ["B", "T", groups * width],
        "value": ["B", "T", groups * width],
        "cos": ["B", "T", half],
        "sin": ["B", "T", half],
        "position_ids": ["B", "T"],
    }
    shapes |= {name: list(shape) for name, shape in case.learned_shapes.items()}
    nodes, results = [], []
    for layer in range(layers):
        own = {name: f"{name}.{layer}" for name in case.signature.states}
        shapes |= {own[name]: ["B", *shape] for name, shape in case.state_shapes.items()}
        renamed = own | ({"query": f"output.{layer - 1}"} if layer else {})
        inputs = [renamed.get(name, name) for name in case.signature.inputs]
        outputs = [f"{name}.{layer}" for name in case.signature.outputs]
        nodes.append(helper.make_node(case.signature.onnx_name, inputs, outputs, domain=DOMAIN, **attributes_of(case)))
        results += outputs
    kind = {"position_ids": TensorProto.INT64}
    graph = helper.make_graph(
        nodes,
        "mixer",
        [helper.make_tensor_value_info(n, kind.get(n, TensorProto.FLOAT), s) for n, s in shapes.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in results],
    )
    imports = [helper.make_opsetid(name, v) for name, v in (("", 23), ("com.microsoft", 1), (DOMAIN, OPSET))]
    return helper.make_model(
        graph, functions=[stock_function(case.signature.onnx_name)], opset_imports=imports, ir_version=10
    )


def session_of(case: Case, layers: int = 1) -> onnxruntime.InferenceSession:
    return _session(model_of(case, layers).SerializeToString())


@cache
def _session(model: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def zero_states(case: Case, batch: int) -> Arrays:
    return {name: np.zeros((batch, *shape), np.float32) for name, shape in case.state_shapes.items()}


def call(case: Case, inputs: Sequences, states: Arrays, start: int, stop: int) -> Arrays:
    """Run tokens ``start`` to ``stop`` from ``states``; gives the output and the next states by their names."""
    positions = np.tile(np.arange(start, stop), (len(inputs.query), 1))
    results = call_at(case, inputs.between(start, stop), states, positions)
    if case.mixer != "lolcats":
        # GroupQueryAttention writes only the rows it fills; the rest is what the output's memory held, and the
        # runtime hands it zeroed memory.
        for name in ("window_key", "window_value"):
            results[name][:, :, stop:] = 0
    return results


def call_at(case: Case, inputs: Sequences, states: Arrays, positions: np.ndarray) -> Arrays:
    """Run one call over all of ``inputs``, each row at its own positions."""
    feed = shared_feed(inputs, positions) | {f"{name}.0": array for name, array in states.items()}
    return dict(zip(("output", *case.signature.states), session_of(case).run(None, feed), strict=True))


def shared_feed(inputs: Sequences, positions: np.ndarray) -> Arrays:
    """All but the states."""
    projections = dict(zip(("query", "key", "value"), inputs.projections, strict=True))
    tensors = {**projections, "cos": inputs.angles.cos(), "sin": inputs.angles.sin(), **inputs.learned}
    return {name: tensor.float().numpy() for name, tensor in tensors.items()} | {"position_ids": positions}


def run(case: Case, inputs: Sequences, cuts: Sequence[int] = (), *, poison: bool = False) -> Arrays:
    """Run the sequences in several calls. ``poison`` puts NaN into unused window rows before every call."""
    states, joined = zero_states(case, len(inputs.query)), []
    for start, stop in pairwise((0, *cuts, inputs.length)):
        if poison:
            for name in ("window_key", "window_value"):
                states[name] = states[name].copy()
                states[name][:, :, start:] = np.nan
        results = call(case, inputs, states, start, stop)
        joined.append(results["output"])
        states = {name: results[name] for name in case.signature.states}
    return {"output": np.concatenate(joined, axis=1), **states}
