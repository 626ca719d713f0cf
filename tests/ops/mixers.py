"""Each mixer's equations, token by token in float64, and its ONNX form as a session: what the tests compare."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper
from torch import Tensor

from liger_export.ops.naive import naive_rotary
from liger_export.ops.onnx_forms import DOMAIN, OPSET, SCHEMAS, stock_function

NORMALIZER = 16.0


@dataclass(frozen=True)
class Case:
    """A mixer at one shape: H heads, G key/value heads, head size D, window W, M slots, F features."""

    operator: str
    heads: int = 4
    groups: int = 2
    head_dim: int = 8
    window: int = 8
    slots: int = 4
    features: int = 6
    options: dict[str, float] = field(default_factory=dict)

    @property
    def recurrent_weight(self) -> float:
        return self.options.get("recurrent_weight", 0.5)

    @property
    def states(self) -> list[str]:
        return [name.removeprefix("next_") for name in list(outputs(self.operator))[1:]]

    def state_shape(self, name: str) -> tuple[int, ...]:
        if name in ("window_key", "window_value"):
            return (self.groups, self.window, self.head_dim)
        if name == "normalizer":
            return (self.heads, self.features)
        if self.operator == "LoLCATsAttention":
            return (self.heads, self.features, self.head_dim)
        rows = self.slots if self.operator == "GSAAttention" else self.head_dim
        return (self.groups, rows, self.head_dim)

    @property
    def learned_shapes(self) -> dict[str, tuple[int, ...]]:
        if self.operator != "LoLCATsAttention":
            return {}
        feature_map = (self.heads, self.head_dim, self.features // 2)
        return {"query_map": feature_map, "key_map": feature_map, "window_factors": (self.heads,)}

    @property
    def attributes(self) -> dict[str, Any]:
        every = {
            "num_heads": self.heads,
            "num_key_value_heads": self.groups,
            "head_dim": self.head_dim,
            "window_size": self.window,
            "num_slots": self.slots,
            "gate_normalizer": NORMALIZER,
            "recurrent_weight": self.recurrent_weight,
        }
        return {name: value for name, value in every.items() if name in SCHEMAS[self.operator].attributes}


def outputs(operator: str) -> list[str]:
    return [parameter.name for parameter in SCHEMAS[operator].outputs]


@dataclass
class Sequences:
    """Two sequences' projections in float64, with their angles, and the mixer's learned tensors."""

    query: Tensor
    key: Tensor
    value: Tensor
    angles: Tensor
    learned: dict[str, Tensor]

    @property
    def length(self) -> int:
        return self.query.shape[1]

    def each(self, change: Callable[[Tensor], Tensor]) -> "Sequences":
        return Sequences(change(self.query), change(self.key), change(self.value), change(self.angles), self.learned)

    def between(self, start: int, stop: int) -> "Sequences":
        return self.each(lambda tensor: tensor[:, start:stop])

    def row(self, index: int) -> "Sequences":
        return self.each(lambda tensor: tensor[index : index + 1])


def stacked(rows: Sequence[Sequences]) -> Sequences:
    """Sequences of one length in one batch."""
    query, key, value, angles = (
        torch.cat(tensors)
        for tensors in zip(*((row.query, row.key, row.value, row.angles) for row in rows), strict=True)
    )
    return Sequences(query, key, value, angles, rows[0].learned)


def sequences(case: Case, length: int, *, batch: int = 2, key_scale: float = 1.0, seed: int = 0) -> Sequences:
    """Random inputs. Strong keys come with weak queries, or float32 could not hold the window's scores."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        # Rounded to float32 first: the reference answers for what the session reads.
        return torch.randn(*shape, generator=generator).double()

    width = case.head_dim
    query = normal(batch, length, case.heads * width) / key_scale
    key = (normal(batch, length, case.groups * width) * key_scale).clamp(-60, 60)
    frequencies = 100.0 ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = (torch.arange(length)[:, None] * frequencies).expand(batch, -1, -1)
    learned = {name: normal(*shape) for name, shape in case.learned_shapes.items()}
    return Sequences(query.float().double(), key, normal(batch, length, case.groups * width), angles, learned)


def reference(case: Case, inputs: Sequences) -> dict[str, Tensor]:
    """Output and final states by the equations, one sequence, token and head at a time."""
    query, key, value = (x.unflatten(-1, (-1, case.head_dim)) for x in (inputs.query, inputs.key, inputs.value))
    rotated = naive_rotary(query, inputs.angles), naive_rotary(key, inputs.angles)
    results: dict[str, list[Tensor]] = {name: [] for name in ("output", *case.states)}
    for b in range(query.shape[0]):
        row = {"query": query[b], "key": key[b], "value": value[b], "rotated_query": rotated[0][b]}
        found = _ROWS[case.operator](case, rotated_key=rotated[1][b], **row, **inputs.learned)
        found |= {"window_key": _last(rotated[1][b], case.window), "window_value": _last(value[b], case.window)}
        for name, tensor in found.items():
            results[name].append(tensor)
    return {name: torch.stack(rows) for name, rows in results.items()}


def _last(rows: Tensor, window: int) -> Tensor:
    buffer = rows.new_zeros(rows.shape[1], window, rows.shape[2])
    kept = rows[-window:].transpose(0, 1)
    buffer[:, : kept.shape[1]] = kept
    return buffer


def _window(case: Case, t: int, h: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    seen = slice(max(0, t + 1 - case.window), t + 1)
    g = h // (case.heads // case.groups)
    scores = key[seen, g] @ query[t, h] / case.head_dim**0.5
    return scores.softmax(0) @ value[seen, g]


def _softmax(case: Case, rotated_query: Tensor, rotated_key: Tensor, value: Tensor, **_: Tensor) -> dict[str, Tensor]:
    output = torch.empty_like(rotated_query)
    for t in range(len(output)):
        for h in range(case.heads):
            output[t, h] = _window(case, t, h, rotated_query, rotated_key, value)
    return {"output": output.flatten(1)}


def _gla(case: Case, query: Tensor, key: Tensor, value: Tensor, **rotated: Tensor) -> dict[str, Tensor]:
    gates = torch.nn.functional.logsigmoid(key) / NORMALIZER
    return _gated(case, query.softmax(-1), key.softmax(-1), gates, value, rotated)


def _hgrn2(case: Case, query: Tensor, key: Tensor, value: Tensor, **rotated: Tensor) -> dict[str, Tensor]:
    return _gated(case, query.softmax(-1), (-key).sigmoid(), torch.nn.functional.logsigmoid(key), value, rotated)


def _gated(
    case: Case, query: Tensor, key: Tensor, gates: Tensor, value: Tensor, rotated: dict[str, Tensor]
) -> dict[str, Tensor]:
    state = value.new_zeros(case.groups, case.head_dim, case.head_dim)
    recurrent = torch.empty_like(query)
    for t in range(len(query)):
        state = gates[t].exp().unsqueeze(-1) * state + key[t].unsqueeze(-1) * value[t].unsqueeze(-2)
        for h in range(case.heads):
            recurrent[t, h] = query[t, h] @ state[h // (case.heads // case.groups)]
    return {"output": _mix(case, recurrent, value, rotated), "recurrent_state": state}


def _mix(case: Case, recurrent: Tensor, value: Tensor, rotated: dict[str, Tensor]) -> Tensor:
    window = _softmax(case, value=value, **rotated)["output"]
    return case.recurrent_weight * recurrent.flatten(1) + (1 - case.recurrent_weight) * window


def _gsa(case: Case, query: Tensor, key: Tensor, value: Tensor, **rotated: Tensor) -> dict[str, Tensor]:
    gates = torch.nn.functional.logsigmoid(key.unflatten(-1, (case.slots, -1)).mean(-1)) / NORMALIZER
    strength = -torch.expm1(gates)
    slot_key = value.new_zeros(case.groups, case.slots, case.head_dim)
    slot_value = torch.zeros_like(slot_key)
    recurrent = torch.empty_like(query)
    for t in range(len(query)):
        decay = gates[t].exp().unsqueeze(-1)
        slot_key = decay * slot_key + strength[t].unsqueeze(-1) * key[t].unsqueeze(-2)
        slot_value = decay * slot_value + strength[t].unsqueeze(-1) * value[t].unsqueeze(-2)
        for h in range(case.heads):
            g = h // (case.heads // case.groups)
            recurrent[t, h] = (slot_key[g] @ query[t, h]).softmax(0) @ slot_value[g]
    return {"output": _mix(case, recurrent, value, rotated), "slot_key": slot_key, "slot_value": slot_value}


def _lolcats(
    case: Case,
    rotated_query: Tensor,
    rotated_key: Tensor,
    value: Tensor,
    query_map: Tensor,
    key_map: Tensor,
    window_factors: Tensor,
    **_: Tensor,
) -> dict[str, Tensor]:
    def features(x: Tensor, weights: Tensor) -> Tensor:
        return torch.cat(((x @ weights).softmax(-1), (-(x @ weights)).softmax(-1)), -1).clamp(min=1e-12)

    output = torch.empty_like(rotated_query)
    state = value.new_zeros(case.heads, case.features, case.head_dim)
    normalizer = value.new_zeros(case.heads, case.features)
    for t in range(len(output)):
        first = max(0, t + 1 - case.window)
        for h in range(case.heads):
            keys, values = rotated_key[:, h // (case.heads // case.groups)], value[:, h // (case.heads // case.groups)]
            if first > 0:
                leaving = features(keys[first - 1], key_map[h])
                state[h] += torch.outer(leaving, values[first - 1])
                normalizer[h] += leaving
            scores = keys[first : t + 1] @ rotated_query[t, h] / case.head_dim**0.5
            terms = window_factors[h].sigmoid() * (scores - scores.max()).exp()
            linear = features(rotated_query[t, h], query_map[h])
            total = terms @ values[first : t + 1] + linear @ state[h]
            output[t, h] = total / (terms.sum() + linear @ normalizer[h])
    return {"output": output.flatten(1), "recurrent_state": state, "normalizer": normalizer}


_ROWS: dict[str, Callable[..., dict[str, Tensor]]] = {
    "GLAAttention": _gla,
    "GSAAttention": _gsa,
    "HGRN2Attention": _hgrn2,
    "LoLCATsAttention": _lolcats,
    "SoftmaxAttention": _softmax,
}


def model_of(case: Case, layers: int = 1) -> onnx.ModelProto:
    """A graph of the operator alone; with more layers, each reads the one before's output as its query."""
    names = [parameter.name for parameter in SCHEMAS[case.operator].inputs]
    width, half = case.head_dim, case.head_dim // 2
    shapes: dict[str, list[str | int]] = {
        "query": ["B", "T", case.heads * width],
        "key": ["B", "T", case.groups * width],
        "value": ["B", "T", case.groups * width],
        "cos": ["B", "T", half],
        "sin": ["B", "T", half],
        "position_ids": ["B", "T"],
    }
    shapes |= {name: list(shape) for name, shape in case.learned_shapes.items()}
    nodes, results = [], []
    for layer in range(layers):
        own = {name: f"{name}.{layer}" for name in case.states}
        shapes |= {own[name]: ["B", *case.state_shape(name)] for name in case.states}
        renamed = own | ({"query": f"output.{layer - 1}"} if layer else {})
        results += [f"{name}.{layer}" for name in outputs(case.operator)]
        nodes.append(
            helper.make_node(
                case.operator,
                [renamed.get(name, name) for name in names],
                results[-len(outputs(case.operator)) :],
                domain=DOMAIN,
                **case.attributes,
            )
        )
    kind = {"position_ids": TensorProto.INT64}
    graph = helper.make_graph(
        nodes,
        "mixer",
        [helper.make_tensor_value_info(n, kind.get(n, TensorProto.FLOAT), s) for n, s in shapes.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in results],
    )
    imports = [helper.make_opsetid(name, v) for name, v in (("", 23), ("com.microsoft", 1), (DOMAIN, OPSET))]
    return helper.make_model(graph, functions=[stock_function(case.operator)], opset_imports=imports, ir_version=10)


def session_of(case: Case, layers: int = 1) -> onnxruntime.InferenceSession:
    return _session(model_of(case, layers).SerializeToString())


@cache
def _session(model: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


Arrays = dict[str, np.ndarray]


def zero_states(case: Case, batch: int) -> Arrays:
    return {name: np.zeros((batch, *case.state_shape(name)), np.float32) for name in case.states}


def call(case: Case, inputs: Sequences, states: Arrays, start: int, stop: int) -> Arrays:
    """Run tokens ``start`` to ``stop`` from ``states``; gives the output and the next states by their names."""
    positions = np.tile(np.arange(start, stop), (len(inputs.query), 1))
    results = call_at(case, inputs.between(start, stop), states, positions)
    if case.operator != "LoLCATsAttention":
        # GroupQueryAttention writes only the rows it fills; the rest is what the output's memory held, and the
        # runtime hands it zeroed memory.
        for name in ("window_key", "window_value"):
            results[name][:, :, stop:] = 0
    return results


def call_at(case: Case, inputs: Sequences, states: Arrays, positions: np.ndarray) -> Arrays:
    """Run one call over all of ``inputs``, each row at its own positions."""
    feed = {name: getattr(inputs, name).float().numpy() for name in ("query", "key", "value")}
    feed |= {"cos": inputs.angles.cos().float().numpy(), "sin": inputs.angles.sin().float().numpy()}
    feed["position_ids"] = positions
    feed |= {name: tensor.float().numpy() for name, tensor in inputs.learned.items()}
    feed |= {f"{name}.0": array for name, array in states.items()}
    return dict(zip(("output", *case.states), session_of(case).run(None, feed), strict=True))


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
        states = {name: results[name] for name in case.states}
    return {"output": np.concatenate(joined, axis=1), **states}
