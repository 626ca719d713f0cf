"""What the tests of both forms of an operator share: a mixer at some shape, random inputs, and the naive answer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from liger_export.config import LAYER_MIXERS
from liger_export.ops import NAIVE_ATTENTIONS, SIGNATURES, AttentionSignature
from tests.tiny import relative_l2

every_mixer = pytest.mark.parametrize("mixer", sorted(SIGNATURES))


@dataclass(frozen=True)
class Case:
    """A mixer at one shape. Fields are named as in ``LigerConfig``: the state table and the operators read them."""

    mixer: str
    num_key_value_heads: int = 2
    num_queries_per_kv: int = 2
    head_dim: int = 8
    window_size: int = 8
    num_slots: int = 4
    feature_dim: int = 3
    gate_normalizer: float = 16.0
    recurrent_weight: float = 0.5

    @property
    def signature(self) -> AttentionSignature:
        return SIGNATURES[self.mixer]

    @property
    def num_attention_heads(self) -> int:
        return self.num_key_value_heads * self.num_queries_per_kv

    @property
    def num_features(self) -> int:
        return 2 * self.feature_dim

    @property
    def options(self) -> list[float]:
        return [getattr(self, name) for name in self.signature.options]

    @property
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        window = (self.num_key_value_heads, self.window_size, self.head_dim)
        recurrent = LAYER_MIXERS[self.mixer].state_shapes(self)
        return {name: recurrent.get(name, window) for name in self.signature.states}

    @property
    def learned_shapes(self) -> dict[str, tuple[int, ...]]:
        return LAYER_MIXERS[self.mixer].parameter_shapes(self)


@dataclass(frozen=True)
class Sequences:
    """Sequences' projections and rotary angles in float64, and the mixer's learned tensors."""

    query: Tensor
    key: Tensor
    value: Tensor
    angles: Tensor
    learned: dict[str, Tensor]

    @property
    def projections(self) -> list[Tensor]:
        return [self.query, self.key, self.value]

    @property
    def length(self) -> int:
        return self.query.shape[1]

    def each(self, change: Callable[[Tensor], Tensor]) -> "Sequences":
        return Sequences(*map(change, self.projections), change(self.angles), self.learned)

    def between(self, start: int, stop: int) -> "Sequences":
        return self.each(lambda tensor: tensor[:, start:stop])

    def row(self, index: int) -> "Sequences":
        return self.each(lambda tensor: tensor[index : index + 1])

    def projected(self, *projections: Tensor) -> "Sequences":
        query, key, value = projections
        return replace(self, query=query, key=key, value=value)


def stacked(rows: list[Sequences]) -> Sequences:
    """Sequences of one length in one batch."""
    *projections, angles = (torch.cat(each) for each in zip(*((*r.projections, r.angles) for r in rows), strict=True))
    return replace(rows[0].projected(*projections), angles=angles)


def sequences(case: Case, length: int, *, batch: int = 2, key_scale: float = 1.0) -> Sequences:
    """Random inputs that float32 holds exactly, so that the reference answers for what every form reads.

    Strong keys come with weak queries, or float32 could not hold the scores.
    """
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator) * scale).double()

    width, groups = case.head_dim, case.num_key_value_heads
    query = normal(batch, length, case.num_attention_heads * width, scale=1 / key_scale)
    key = normal(batch, length, groups * width, scale=key_scale).clamp(-60, 60)
    value = normal(batch, length, groups * width)
    frequencies = 100.0 ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = (torch.arange(length)[:, None] * frequencies).expand(batch, -1, -1)
    return Sequences(query, key, value, angles, {name: normal(*shape) for name, shape in case.learned_shapes.items()})


def reference(case: Case, inputs: Sequences) -> dict[str, Tensor]:
    """Output [B, T, H * D] and final states by the equations."""
    heads = [tensor.unflatten(-1, (-1, case.head_dim)) for tensor in inputs.projections]
    numbers = {name: getattr(case, name) for name in (*case.signature.options, *case.signature.sizes)}
    attention = NAIVE_ATTENTIONS[case.mixer]
    output, *states = attention(*heads, inputs.angles, case.window_size, **numbers, **inputs.learned)
    return {"output": output.flatten(2), **dict(zip(case.signature.states, states, strict=True))}


def assert_equal(measured: Mapping[str, Any], expected: dict[str, Tensor], bound: float) -> None:
    """Compare tensors or arrays with the reference's of the same names."""
    for name, tensor in expected.items():
        found = torch.as_tensor(measured[name])
        if not tensor.any():  # nothing has left the window yet
            assert not found.any(), name
            continue
        error = relative_l2(found, tensor)
        assert error <= bound, f"{name}: relative L2 {error:.1e}"
