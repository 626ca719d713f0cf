"""Linear layers for few tokens, on a GPU or in Triton's interpreter, against float64."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from liger_export.errors import KernelError
from liger_export.kernels.build import plan_key
from liger_export.kernels.plans import dequantize_plan, linear_plan
from liger_export.kernels.shapes import AttentionShape, LinearShape
from tests.kernels.cases import BOUNDS, DEVICE, every_dtype

triton = pytest.importorskip("triton", reason="needs Triton, which is only available on Linux")

TOKENS, COLUMNS, EPSILON = 2, 352, 1e-5  # not a multiple of what a program reads per iteration
SUM = {4: 32, 8: 16}  # activations that share a scale, by the bits of the weights


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)  # a value halfway between two integers may round either way


def rounded(values: Tensor, share: int) -> Tensor:
    """Round activations like the kernel for integer weights: to 8 bits, with one scale per ``share`` of them."""
    blocks = values.unflatten(-1, (-1, share))
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    return ((blocks * (1 / scale)).round() * scale).nan_to_num().flatten(-2)


def reference(
    hidden: Tensor,
    weight: Tensor,
    norm: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    gated: bool,
    *,
    share: int = 0,
) -> Tensor:
    """Compute the layer in float64."""
    hidden = hidden.double()
    root = (hidden.square().mean(-1, keepdim=True) + EPSILON).rsqrt() if norm is not None else 1.0
    values = hidden * norm.double() if norm is not None else hidden
    values = rounded(values.float(), share).double() if share else values
    result = root * (values @ weight.double().mT)
    result = result + bias.double() if bias is not None else result
    if gated:
        gate, up = result.chunk(2, -1)
        result = gate * gate.sigmoid() * up
    return result + residual.double() if residual is not None else result


def integers(rows: int, bits: int, block_size: int, symmetric: bool) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return a random weight in the layout of MatMulNBits, and dequantized."""
    blocks = COLUMNS // block_size
    numbers = torch.randint(0, 1 << bits, (rows, COLUMNS))
    zeros = torch.randint(0, 1 << bits, (rows, blocks)) if not symmetric else torch.full((rows, blocks), 1 << bits - 1)
    scales = (torch.rand(rows, blocks) + 0.5) / 100
    weight = (numbers - zeros.repeat_interleave(block_size, 1)) * scales.repeat_interleave(block_size, 1)
    stored = tuple(packed(values, bits).to(DEVICE) for values in (numbers, zeros))
    return (stored[0].view(torch.int32), scales.to(DEVICE), stored[1]), weight


def packed(values: Tensor, bits: int) -> Tensor:
    if bits == 8:
        return values.to(torch.uint8)
    values = torch.nn.functional.pad(values, (0, values.shape[1] % 2))
    return (values[:, ::2] | values[:, 1::2] << 4).to(torch.uint8).contiguous()


def launch(
    shape: LinearShape,
    weight: tuple[Tensor, ...],
    hidden: Tensor,
    *optional: Tensor | None,
    programs: int = 0,
) -> Tensor:
    from liger_export.kernels import linear

    norm, bias, residual = optional
    plan = linear_plan(shape)
    has = [int(tensor is not None) for tensor in optional]
    if len(weight) > 1:
        has.insert(1, int(weight[2] is not None))
        weight = (*weight[:2], hidden if weight[2] is None else weight[2])
    output = torch.full(
        (TOKENS, shape.rows), float("nan"), device=DEVICE, dtype=torch.float32 if shape.to_float else hidden.dtype
    )
    pointers = [hidden if tensor is None else tensor for tensor in (norm, *weight, bias, residual)]
    constants = plan.constants | ({"NATIVE": DEVICE == "cuda"} if shape.bits < 16 else {})
    kernel = getattr(linear, plan.kernel)
    sizes = (COLUMNS, shape.rows, EPSILON)
    grid = (programs, TOKENS, 1) if programs else plan.programs(TOKENS, shape.rows)
    kernel[grid](hidden, *pointers, output, *sizes, *has, **constants, **plan.options)
    return output


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.cpu().double() - expected).norm() / expected.norm())


@every_dtype
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("present", [(True, True, True), (True, False, False), (False, False, True)])
def test_dense_layers_equal_their_definition(dtype: torch.dtype, gated: bool, present: tuple[bool, ...]) -> None:
    shape = LinearShape(rows=37, columns=COLUMNS, is_gated=gated)
    height = shape.rows * (1 + gated)
    hidden, weight = (torch.randn(size, COLUMNS).to(dtype) for size in (TOKENS, height))
    optional = [
        tensor.to(dtype) if there else None
        for tensor, there in zip(
            (torch.rand(COLUMNS), torch.randn(height), torch.randn(TOKENS, shape.rows)), present, strict=True
        )
    ]
    found = launch(shape, (weight.to(DEVICE),), *(None if t is None else t.to(DEVICE) for t in (hidden, *optional)))
    assert relative(found, reference(hidden, weight, *optional, gated)) < BOUNDS[dtype]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block_size", [32, 352])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_integer_layers_equal_their_definition(bits: int, block_size: int, gated: bool, symmetric: bool) -> None:
    shape = LinearShape(rows=21, columns=COLUMNS, bits=bits, block_size=block_size, is_gated=gated)
    height = shape.rows * (1 + gated)
    stored, weight = integers(height, bits, block_size, symmetric)
    hidden, norm = torch.randn(TOKENS, COLUMNS), torch.rand(COLUMNS) + 0.5
    bias, residual = torch.randn(height), torch.randn(TOKENS, shape.rows)
    given = stored if not symmetric else (*stored[:2], None)
    found = launch(shape, given, *(t.to(DEVICE) for t in (hidden, norm, bias, residual)))
    assert relative(found, reference(hidden, weight, norm, bias, residual, gated, share=SUM[bits])) < 1e-5
    assert relative(found, reference(hidden, weight, norm, bias, residual, gated)) < 3e-2  # error of 8-bit activations


def test_logits_are_float32_whatever_the_activations_are() -> None:
    shape = LinearShape(rows=40, columns=COLUMNS, to_float=True)
    hidden, weight = (torch.randn(size, COLUMNS).half() for size in (TOKENS, shape.rows))
    found = launch(shape, (weight.to(DEVICE),), hidden.to(DEVICE), None, None, None)
    assert found.dtype == torch.float32
    assert relative(found, hidden.double() @ weight.double().mT) < 1e-6


@pytest.mark.parametrize("programs", [1, 2, 3, 4, 7, 9])
@pytest.mark.parametrize("bits", [4, 16])
def test_any_number_of_programs_computes_every_row(programs: int, bits: int) -> None:
    shape = LinearShape(rows=21, columns=COLUMNS, bits=bits, block_size=32 if bits == 4 else 0)
    stored, weight = integers(shape.rows, 4, 32, symmetric=False)
    hidden = torch.randn(TOKENS, COLUMNS)
    given = stored if bits == 4 else (weight.to(DEVICE),)
    found = launch(shape, given, hidden.to(DEVICE), None, None, None, programs=programs)
    share = SUM[bits] if bits == 4 else 0
    assert relative(found, reference(hidden, weight, None, None, None, False, share=share)) < 1e-5


def test_a_row_of_zeros_gives_zeros() -> None:
    shape = LinearShape(rows=8, columns=COLUMNS, bits=4, block_size=32)
    stored, _ = integers(shape.rows, 4, 32, symmetric=False)
    found = launch(shape, stored, torch.zeros(TOKENS, COLUMNS, device=DEVICE), None, None, None)
    assert found.abs().max() == 0


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_dequantized_rows_are_the_numbers_that_integers_stand_for(bits: int, symmetric: bool) -> None:
    from liger_export.kernels.pointwise import dequantize_kernel

    (words, scales, zeros), weight = integers(5, bits, 32, symmetric)
    output = torch.full((5, COLUMNS), float("nan"), device=DEVICE)
    plan = dequantize_plan(bits, 32)
    arguments = (words, scales, zeros, output, COLUMNS, int(not symmetric))
    dequantize_kernel[plan.programs(5, COLUMNS)](*arguments, **plan.constants, **plan.options)
    assert relative(output, weight.double()) < 1e-6


def test_plans_of_different_layers_have_different_names() -> None:
    small = LinearShape(rows=64, columns=2048, bits=4, block_size=32)
    shapes = [small, replace(small, bits=8), replace(small, is_gated=True), replace(small, to_float=True)]
    shapes += [replace(small, block_size=64), replace(small, rows=20000), replace(small, bits=16, block_size=0)]
    shapes += [replace(small, columns=2016), replace(small, columns=4096)]
    assert len({linear_plan(shape).name for shape in shapes}) == len(shapes)


def test_layers_that_differ_only_in_rows_run_the_same_code() -> None:
    attention = AttentionShape(
        "gla", num_key_value_heads=8, num_queries_per_kv=4, head_dim=64, window=64, activation="float16"
    )
    few, more = (linear_plan(LinearShape(rows, columns=2048)) for rows in (64, 20000))
    assert few.grid != more.grid
    assert plan_key(few, attention, "sm_90") == plan_key(more, attention, "sm_90")


@pytest.mark.parametrize(
    "wrong", [{"columns": 24}, {"columns": 32784}, {"bits": 3, "block_size": 32}, {"bits": 4, "block_size": 16}]
)
def test_a_layer_that_no_kernel_computes_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(KernelError, match="No kernel multiplies by weights of"):
        LinearShape(**{"rows": 64, "columns": 64, **wrong})
