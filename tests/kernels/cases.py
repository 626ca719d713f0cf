"""Runs of kernels over whole sequences, on a GPU or else in Triton's interpreter, with outputs poisoned first."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from liger_export.kernels import launch
from liger_export.kernels.shapes import KERNEL_MIXERS, TRAINED_MIXERS
from tests.cells import slow_except
from tests.ops.cases import Case, Sequences, reference, sequences

triton = pytest.importorskip("triton", reason="needs Triton, which is only available on Linux")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BOUNDS = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 5e-3}
# Triton's interpreter multiplies bfloat16 matrices as if their bits were integers.
DTYPES = list(BOUNDS) if DEVICE == "cuda" else [torch.float32, torch.float16]

every_mixer = pytest.mark.parametrize("mixer", KERNEL_MIXERS)
every_trained_mixer = pytest.mark.parametrize("mixer", TRAINED_MIXERS)
every_dtype = pytest.mark.parametrize("dtype", slow_except([torch.float32], DTYPES), ids=str)


def case_of(mixer: str, *, head_dim: int = 32, **sizes: Any) -> Case:
    """A case that the kernels support, with as many slots as the head size."""
    return Case(mixer, head_dim=head_dim, num_slots=head_dim, **sizes)


def one_head(mixer: str, window_size: int = 24) -> Case:
    """A case for laws that do not depend on the number of heads, on which the interpreter's time does."""
    return case_of(mixer, num_key_value_heads=1, window_size=window_size)


@contextmanager
def poisoned_outputs() -> Iterator[None]:
    """Fill whatever a launch allocates with NaN."""

    def poisoned(make):  # type: ignore[no-untyped-def]
        def made(*arguments, **options):  # type: ignore[no-untyped-def]
            tensor = make(*arguments, **options)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return made

    with (
        patch.object(torch, "empty", poisoned(torch.empty)),
        patch.object(torch, "empty_like", poisoned(torch.empty_like)),
        patch.object(Tensor, "new_empty", poisoned(Tensor.new_empty)),
    ):
        yield


def inputs_and_reference(
    case: Case, length: int, dtype: torch.dtype, *, key_scale: float = 1.0
) -> tuple[Sequences, dict[str, Tensor]]:
    """Return inputs that ``dtype`` represents exactly, and their float64 results."""
    inputs = sequences(case, length, key_scale=key_scale)
    inputs = inputs.projected(*(tensor.to(dtype).double() for tensor in inputs.projections))
    return inputs, reference(case, inputs)


def empty_state(case: Case, dtype: torch.dtype, batch: int = 2) -> tuple[Tensor, ...]:
    """Return the state before the first token: zeros, and NaN in the window, which is empty."""
    return tuple(
        torch.full((batch, *shape), float("nan"), dtype=dtype, device=DEVICE)
        if name.startswith("window")
        else torch.zeros(batch, *shape, device=DEVICE)
        for name, shape in case.state_shapes.items()
    )


def call_arguments(
    inputs: Sequences, positions: Tensor, dtype: torch.dtype
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return projections, as views of one packed row per token, and cos, sin and positions of the tokens."""
    packed = torch.cat(inputs.projections, dim=-1).to(DEVICE, dtype)
    projections = packed.split([tensor.shape[-1] for tensor in inputs.projections], dim=-1)
    angles = inputs.angles.to(DEVICE)
    return projections, (angles.cos().float(), angles.sin().float(), positions.to(DEVICE))


def options(case: Case) -> dict[str, float]:
    return dict(zip(case.signature.options, case.options, strict=True))


def run(
    case: Case,
    inputs: Sequences,
    dtype: torch.dtype,
    cuts: Sequence[int] = (),
    *,
    in_place: bool = False,
    launches: tuple[Callable[..., Any], Callable[..., Any]] = (launch.step, launch.chunkwise),
) -> dict[str, Tensor]:
    """Run a sequence in several calls, cut at ``cuts``. Returns the outputs and the final state.

    The first of ``launches`` runs single tokens, the second several.
    """
    state, outputs = empty_state(case, dtype), []
    for start, stop in pairwise([0, *cuts, inputs.length]):
        positions = torch.arange(start, stop).expand(2, -1).contiguous()
        arguments = call_arguments(inputs.between(start, stop), positions, dtype)
        with poisoned_outputs():
            if in_place:
                output = launch.step_in_place(case.mixer, *arguments, state, **options(case))
            else:
                run_call = launches[0] if stop - start == 1 else launches[1]
                output, *following = run_call(case.mixer, *arguments, state, **options(case))
                state = tuple(following)
        outputs.append(output)
    if in_place:
        seen = torch.full((2,), inputs.length, device=DEVICE)
        is_row = torch.arange(case.window_size, device=DEVICE)[:, None] < inputs.length
        state = state[0], *(torch.where(is_row, launch.oldest_first(ring, seen), 0) for ring in state[1:])
    results = (torch.cat(outputs, dim=1), *state)
    return dict(zip(("output", *case.signature.states), (result.cpu() for result in results), strict=True))
