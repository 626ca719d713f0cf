"""ONNX Runtime's trace of a session, summed by operator."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liger_export.runtime.dynamic import DynamicExecutor
from liger_export.runtime.session import Session

__all__ = ["OperatorTime", "Profile", "end_profile", "read_trace"]

MICROSECOND = 1e-6
# Operators that read all their weights in place, once per call. ONNX Runtime repacks the weights of others, and its
# trace no longer counts them.
READ_IN_PLACE = ("IntegerLinear", "IntegerLogits", "Linear", "Logits")

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class OperatorTime:
    """Time of one operator in a call of the graph.

    Attributes:
        operator: The operator's type, such as ``IntegerLinear``.
        nodes: Number of nodes of this type.
        seconds: Their time in a call.
        weight_bytes: The weights that they read in a call; 0 if unknown.
    """

    operator: str
    nodes: int
    seconds: float
    weight_bytes: int


@dataclass(frozen=True, slots=True)
class Profile:
    """Mean time of the faster half of the calls that read the same number of tokens.

    Attributes:
        tokens: Tokens per call.
        calls: Number of calls, of which the faster half counts.
        seconds: Time of a call.
        operators: Its parts, longest first. What remains is ONNX Runtime's own work between nodes.
    """

    tokens: int
    calls: int
    seconds: float
    operators: tuple[OperatorTime, ...]

    @property
    def remainder(self) -> float:
        """Seconds of a call outside its nodes."""
        return self.seconds - sum(each.seconds for each in self.operators)


def end_profile(session: Session) -> tuple[Profile, ...]:
    """End the trace of a session that ``load`` opened with ``trace``, and read it.

    Returns:
        A profile for each number of tokens per call, in ascending order.
    """
    assert isinstance(session.executor, DynamicExecutor)  # the others have no trace
    return read_trace(Path(session.executor.model.end_profiling()))


def read_trace(file: Path) -> tuple[Profile, ...]:
    """Read the trace file of a session. See ``end_profile``."""
    events: list[Event] = json.loads(file.read_text(encoding="utf-8"))
    nodes = sorted((each for each in events if each["cat"] == "Node"), key=_start)
    runs = sorted((each for each in events if each["name"] == "model_run"), key=_start)
    by_tokens: dict[int, list[tuple[float, list[Event]]]] = {}
    index = 0
    for run in runs:
        inside = []
        while index < len(nodes) and _start(nodes[index]) <= _start(run) + run["dur"]:
            inside.append(nodes[index])
            index += 1
        if tokens := _tokens_of(inside):
            by_tokens.setdefault(tokens, []).append((run["dur"], inside))
    return tuple(_profile(tokens, calls) for tokens, calls in sorted(by_tokens.items()))


def _profile(tokens: int, calls: Sequence[tuple[float, list[Event]]]) -> Profile:
    """Average the faster half of the calls, so that the parts add up and a busy machine counts less."""
    faster = sorted(calls, key=lambda call: call[0])[: (len(calls) + 1) // 2]
    scale = MICROSECOND / len(faster)
    names = dict.fromkeys(node["args"]["op_name"] for _, nodes in faster for node in nodes)
    operators = [_operator(name, faster[0][1], [nodes for _, nodes in faster], scale) for name in names]
    operators.sort(key=lambda each: -each.seconds)
    return Profile(tokens, len(calls), scale * sum(duration for duration, _ in faster), tuple(operators))


def _operator(name: str, one_call: Sequence[Event], calls: Sequence[Sequence[Event]], scale: float) -> OperatorTime:
    own = [node["args"] for node in one_call if node["args"]["op_name"] == name]
    duration = sum(node["dur"] for nodes in calls for node in nodes if node["args"]["op_name"] == name)
    read = sum(int(args["parameter_size"]) for args in own) if name in READ_IN_PLACE else 0
    return OperatorTime(name, len(own), scale * duration, read)


def _tokens_of(nodes: Sequence[Event]) -> int:
    """Tokens of a call: the size of the first int64 matrix that a node reads, which is ``input_ids``."""
    for node in nodes:
        for typed in node["args"].get("input_type_shape", ()):
            shape: Sequence[int] = typed.get("int64", ())
            if len(shape) == 2:
                return shape[0] * shape[1]
    return 0


def _start(event: Event) -> float:
    start: float = event["ts"]
    return start
