"""A profile sums ONNX Runtime's trace by operator, and separates calls by their number of tokens."""

import json
from pathlib import Path
from typing import Any

import pytest

from liger_export.errors import InputError
from liger_export.package import FUSED_CUDA
from liger_export.runtime import load, opening
from liger_export.runtime.buffers import CUDA
from liger_export.runtime.profile import Profile, end_profile, read_trace


def run_event(start: int, duration: int) -> dict[str, Any]:
    return {"cat": "Session", "name": "model_run", "ts": start, "dur": duration, "args": {}}


def node_event(start: int, duration: int, operator: str, **args: Any) -> dict[str, Any]:
    return {"cat": "Node", "name": "kernel_time", "ts": start, "dur": duration, "args": {"op_name": operator, **args}}


def call(start: int, durations: tuple[int, int, int, int], tokens: int = 1) -> list[dict[str, Any]]:
    """A call with an embedding, two linear nodes and 2 microseconds between nodes, which take ``durations``."""
    embedding, first, second, whole = durations
    weights = {"parameter_size": "1000"}
    return [
        node_event(start + 1, embedding, "Gather", input_type_shape=[{"float": [8, 4]}, {"int64": [1, tokens]}]),
        node_event(start + 1 + embedding, first, "IntegerLinear", **weights),
        node_event(start + 2 + embedding + first, second, "IntegerLinear", **weights),
        run_event(start, whole),
    ]


def read(tmp_path: Path, *calls: list[dict[str, Any]]) -> tuple[Profile, ...]:
    file = tmp_path / "trace.json"
    loading = {"cat": "Session", "name": "session_initialization", "ts": 0, "dur": 5, "args": {}}
    file.write_text(json.dumps([loading, *(event for one in calls for event in one)]))
    return read_trace(file)


def test_the_faster_half_of_the_calls_is_averaged_and_its_parts_add_up(tmp_path: Path) -> None:
    fast, slower, slowest = (10, 20, 30, 62), (12, 22, 36, 72), (500, 20, 30, 552)
    [profile] = read(tmp_path, call(100, slowest), call(1000, slower), call(2000, fast), call(3000, slowest))
    assert (profile.tokens, profile.calls, profile.seconds) == (1, 4, pytest.approx(67e-6))
    linear, embedding = profile.operators
    assert (linear.operator, linear.nodes, linear.weight_bytes) == ("IntegerLinear", 2, 2000)
    assert linear.seconds == pytest.approx(54e-6)
    assert (embedding.operator, embedding.seconds, embedding.weight_bytes) == ("Gather", pytest.approx(11e-6), 0)
    assert profile.remainder == pytest.approx(2e-6)


def test_calls_of_several_tokens_have_their_own_profile(tmp_path: Path) -> None:
    profiles = read(tmp_path, call(100, (10, 20, 30, 62), tokens=7), call(1000, (1, 2, 3, 8)))
    assert [(each.tokens, each.calls) for each in profiles] == [(1, 1), (7, 1)]
    assert profiles[1].seconds == pytest.approx(62e-6)


def test_the_trace_of_a_session_has_its_calls_and_their_nodes(package: Path, tmp_path: Path) -> None:
    session = load(package, threads=1, trace=tmp_path / "trace")
    session.prefill([1, 2, 3])
    for token in range(4):
        session.step(token)
    steps, prompt = end_profile(session)
    assert [(each.tokens, each.calls) for each in (steps, prompt)] == [(1, 4), (3, 1)]
    assert {"LinearAttention", "GroupQueryAttention"} <= {each.operator for each in load_stock(package, tmp_path)}
    for profile in (steps, prompt):
        assert all(each.seconds >= 0 and each.nodes > 0 for each in profile.operators)
        assert 0 < sum(each.seconds for each in profile.operators) <= profile.seconds


def load_stock(package: Path, tmp_path: Path) -> Any:
    session = load(package, threads=1, lowering="stock", trace=tmp_path / "stock")
    session.step(1)
    return end_profile(session)[0].operators


def test_a_gpu_is_refused(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "choose_graph", lambda *_: opening.Choice(FUSED_CUDA, CUDA))
    with pytest.raises(InputError, match="Only calls on the CPU"):
        load(package, trace=tmp_path / "trace")
