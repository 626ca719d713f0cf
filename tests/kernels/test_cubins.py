"""Compiled kernels of the default shapes, as a wheel ships them, run on a GPU through the CUDA driver.

Prebuilt kernels are used where the package has them (``python -m liger_export.kernels.prebuilt``), so that the hashes
in the report are those of its manifest. Other kernels are compiled here.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from liger_export.kernels.build import Build
from liger_export.kernels.plans import BLOCK, CHUNK, TOP_LOGITS, Axis, batched_step_plan
from liger_export.kernels.prebuilt import DEFAULTS, find_or_build
from liger_export.kernels.shapes import AttentionShape
from tests import cuda_driver
from tests.kernels.cases import BOUNDS, inputs_and_reference, run
from tests.kernels.compiled import NEEDS_TRITON_3_9
from tests.ops.cases import Case, assert_equal
from tests.top_logits import assert_top_logits

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

RanCode = Callable[[str, bytes], None]


@cache
def build_of(shape: AttentionShape) -> Build:
    return find_or_build(shape, "sm_{}{}".format(*torch.cuda.get_device_capability()))


class Kernels:
    """A build's kernels as functions of torch tensors, launched like plugins/ort launches them."""

    def __init__(self, build: Build, ran_code: RanCode) -> None:
        self.build, self.ran_code = build, ran_code

    def launch(self, name: str, batch: int, length: int, /, **arguments: Any) -> None:
        kernel, cubin = self.build.kernels[name], self.build.cubins[name]
        self.ran_code(f"{name}, {self.build.target}, {self.build.shape}", cubin)
        grid = [Axis(**axis).count(batch, length) for axis in kernel["grid"]]
        values = {**arguments, "global_scratch": None, "profile_scratch": None}
        given = [(argument["type"], values[argument["name"]]) for argument in kernel["arguments"]]
        cuda_driver.launch(cubin, kernel["name"], grid, kernel["threads"], kernel["shared_bytes"], given)

    def call(
        self, projections: tuple[Tensor, ...], positions: tuple[Tensor, ...], state: tuple[Tensor, ...]
    ) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        """Return the results of a call, not yet computed, and the arguments that all kernels share."""
        results = (torch.empty_like(projections[0].contiguous()), *(torch.empty_like(tensor) for tensor in state))
        names = ("query", "key", "value", "cos", "sin", "position_ids", "state", "window_key", "window_value")
        outputs = ("output", "next_state", "next_window_key", "next_window_value")
        tensors = (*projections, *(tensor.contiguous() for tensor in positions), *state, *results)
        return results, dict(zip((*names, *outputs), tensors, strict=True))

    def step(self, mixer: str, projections: Any, positions: Any, state: Any, **options: float) -> tuple[Tensor, ...]:
        """Run one token, as ``launch.step`` does."""
        results, arguments = self.call(projections, positions, state)
        strides = {f"{name}_stride": arguments[name].stride(0) for name in ("query", "key", "value")}
        self.launch("step_kernel", len(projections[0]), 1, **arguments, **strides, **options)
        return results

    def batched_step(
        self, mixer: str, projections: Any, positions: Any, state: Any, **options: float
    ) -> tuple[Tensor, ...]:
        """Run one token with the batched kernel, as ``launch.step`` does for large batches."""
        results, arguments = self.call(projections, positions, state)
        arguments |= {f"{name}_stride": arguments[name].stride(0) for name in ("query", "key", "value")}
        query, shape = projections[0], self.build.shape
        heads = (len(query), shape.num_key_value_heads)
        arguments["vectors"] = query.new_empty(
            *heads, shape.num_queries_per_kv + 2, shape.head_dim, dtype=torch.float32
        )
        arguments["rotated_queries"] = query.new_empty(*heads, shape.num_queries_per_kv, shape.head_dim)
        self.launch("many_step_kernel", len(query), 1, **arguments, **options)
        return results

    def chunkwise(
        self, mixer: str, projections: Any, positions: Any, state: Any, **options: float
    ) -> tuple[Tensor, ...]:
        """Run several tokens, as ``launch.chunkwise`` does."""
        results, arguments = self.call(projections, positions, state)
        query, shape = projections[0], self.build.shape
        batch, length = query.shape[:2]
        padded = length + -length % CHUNK
        rows, single = (
            (batch, shape.num_key_value_heads, padded, shape.head_dim),
            {"device": query.device, "dtype": torch.float32},
        )
        arguments |= {name: torch.empty(rows, **single) for name in ("features", "gates")}
        arguments |= {name: query.new_empty(rows) for name in ("decayed_keys", "rotated_keys")}
        arguments["block_gates"] = torch.empty(*rows[:2], padded // BLOCK, shape.head_dim, **single)
        arguments["entering"] = torch.empty(*rows[:2], padded // CHUNK, shape.head_dim, shape.head_dim, **single)
        arguments["counts"] = torch.empty(batch, dtype=torch.int32, device=query.device)
        arguments |= {"length": length, "padded_length": padded, **options}
        for name in ("query", "key", "value"):
            arguments[f"{name}_batch_stride"], arguments[f"{name}_stride"] = arguments[name].stride()[:2]
        for name in ("count", "prepare", "pass", "window", "output", "leave"):
            self.launch(f"{name}_kernel", batch, length, **arguments)
        return results


@pytest.fixture(params=[shape for shape, _ in DEFAULTS], ids=str)
def kernels(request: pytest.FixtureRequest, ran_code: RanCode) -> Kernels:
    return Kernels(build_of(request.param), ran_code)


def test_attention_equals_the_naive_reference(kernels: Kernels) -> None:
    shape = kernels.build.shape
    dtype: torch.dtype = getattr(torch, shape.activation)
    case = Case(shape.mixer, shape.num_key_value_heads, shape.num_queries_per_kv, shape.head_dim, shape.window)
    inputs, expected = inputs_and_reference(case, 203, dtype)
    found = run(case, inputs, dtype, (100, 101, 102, 200), launches=(kernels.step, kernels.chunkwise))
    assert_equal(found, expected, BOUNDS[dtype])


@pytest.mark.parametrize("shape", [shape for shape, _ in DEFAULTS if batched_step_plan(shape, ring=False)], ids=str)
def test_batched_steps_equal_the_naive_reference(shape: AttentionShape, ran_code: RanCode) -> None:
    build = build_of(shape)
    if "many_step_kernel" not in build.kernels:
        pytest.skip(NEEDS_TRITON_3_9)
    dtype: torch.dtype = getattr(torch, shape.activation)
    case = Case(shape.mixer, shape.num_key_value_heads, shape.num_queries_per_kv, shape.head_dim, shape.window)
    inputs, expected = inputs_and_reference(case, 203, dtype)
    kernels = Kernels(build, ran_code)
    cuts = (50, *range(51, 70), 200, 201, 202)
    found = run(case, inputs, dtype, cuts, launches=(kernels.batched_step, kernels.chunkwise))
    assert_equal(found, expected, BOUNDS[dtype])


def test_the_kernels_outside_attention_equal_their_definitions(kernels: Kernels) -> None:
    dtype: torch.dtype = getattr(torch, kernels.build.shape.activation)
    rows = torch.randn(3, 2 * 2504, device="cuda").to(dtype)
    gated = torch.full((3, 2504), float("nan"), dtype=dtype, device="cuda")
    kernels.launch("gated_silu_kernel", 3, 2504, rows=rows, gated=gated, width=2504)
    gate, up = rows.double().chunk(2, dim=-1)
    expected = gate * gate.sigmoid() * up
    assert float((gated.double() - expected).norm() / expected.norm()) < BOUNDS[dtype]

    width = 128256
    logits = torch.randn(2, 1, width, device="cuda") * 3
    chosen = torch.full((2,), -1, dtype=torch.int64, device="cuda")
    parts = -(-width // 2048)
    values = torch.full((2, parts), float("nan"), device="cuda")
    indices = torch.full((2, parts), -1, dtype=torch.int32, device="cuda")
    kernels.launch("best_of_parts_kernel", 2, width, logits=logits, values=values, indices=indices, width=width)
    kernels.launch("most_likely_kernel", 2, 1, values=values, indices=indices, chosen=chosen, parts=parts)
    assert torch.equal(chosen, logits[:, 0].argmax(-1))

    lists, merged = (torch.full((2, 16, TOP_LOGITS), -1, dtype=torch.int64, device="cuda") for _ in range(2))
    sums, totals = (torch.full((2, 16, 2), float("nan"), device="cuda") for _ in range(2))
    shared = {"temperature": torch.tensor(0.7, device="cuda"), "width": width, "length": 1, "count": 16}
    kernels.launch("list_kernel", 2, width, logits=logits, lists=lists, sums=sums, **shared)
    kernels.launch("merge_kernel", 2, 16, lists=lists, sums=sums, next_lists=merged, next_sums=totals, **shared)
    found = torch.full((2, 1 + 2 * TOP_LOGITS), float("nan"), device="cuda")
    kernels.launch("order_kernel", 2, 1, lists=merged, sums=totals, candidates=found, **shared)
    assert_top_logits(found.cpu().numpy(), logits.cpu().numpy(), 0.7)
