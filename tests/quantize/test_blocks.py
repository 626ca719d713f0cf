import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnxruntime.capi import _pybind_state as ort_quantizers

from liger_export.precision import Scheme
from liger_export.quantize.blocks import ENCODERS, Blocks, dequantize, encode, largest_value, pack, unpack

SCHEMES = [Scheme(bits, size, symmetric) for bits in (4, 8) for size in (32, 128) for symmetric in (False, True)]


def random_rows(count: int, columns: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, columns)).astype(np.float32)


def naive_dequantize(blocks: Blocks, scheme: Scheme, columns: int) -> npt.NDArray[np.float64]:
    """Dequantize weight by weight from the layout in ONNX Runtime's documentation."""

    def integer(row: npt.NDArray[np.uint8], index: int) -> int:
        if scheme.bits == 8:
            return int(row[index])
        return int(row[index // 2]) >> (4 * (index % 2)) & 15

    values = np.empty((len(blocks.packed), columns))
    for row in range(len(values)):
        for column in range(columns):
            block = column // scheme.block_size
            zero = 1 << (scheme.bits - 1) if blocks.zero_points is None else integer(blocks.zero_points[row], block)
            values[row, column] = float(blocks.scales[row, block]) * (integer(blocks.packed[row], column) - zero)
    return values


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([4, 8]), st.integers(1, 5), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_unpack_inverts_pack(bits: int, count: int, columns: int, seed: int) -> None:
    integers = np.random.default_rng(seed).integers(0, 1 << bits, (count, columns), dtype=np.uint8)
    np.testing.assert_array_equal(unpack(pack(integers, bits), bits)[:, :columns], integers)


@pytest.mark.parametrize(
    ("scheme", "method"),
    [(scheme, name) for scheme in SCHEMES for name in ENCODERS if name == "rtn" or not scheme.symmetric],
    ids=str,
)
def test_dequantize_equals_the_naive_version_and_approximates_the_weights(scheme: Scheme, method: str) -> None:
    rows = random_rows(3, 384)
    blocks = encode(rows, scheme, method)
    values = dequantize(blocks, scheme)
    np.testing.assert_allclose(values, naive_dequantize(blocks, scheme, 384), rtol=1e-6)
    per_block = rows.reshape(3, -1, scheme.block_size)
    step = (per_block.max(-1) - per_block.min(-1)) / (2**scheme.bits - 1)
    step = 2 * np.abs(per_block).max(-1) / (2**scheme.bits - 1) if scheme.symmetric else step
    error = np.abs(values - rows).reshape(per_block.shape).max(-1)
    assert np.all(error <= 1.2 * step)


def extreme_rows(columns: int) -> npt.NDArray[np.float32]:
    """Rows of bfloat16 numbers, whose magnitudes are often equal, and rows at the ends of float32."""
    rows = (random_rows(24, columns).view(np.uint32) & 0xFFFF0000).view(np.float32)
    rows[0], rows[1], rows[2] = 0, abs(rows[1]), -abs(rows[2])
    rows[3, ::2], rows[3, 1::2] = 3.4e38, -3.4e38
    rows[4], rows[4, ::5] = 1e-40, 0
    rows[5], rows[5, ::3] = 0.5, -0.5
    rows[6], rows[7] = np.arange(columns) % 32 - 7.5, -0.0
    rows[8, ::2], rows[8, 1::2] = -1e-40, 0
    return rows


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block_size", [32, 64, 128])
@pytest.mark.parametrize("symmetric", [False, True])
def test_rounding_to_nearest_gives_the_bits_of_onnxruntimes_quantizer(
    bits: int, block_size: int, symmetric: bool
) -> None:
    scheme, columns = Scheme(bits, block_size, symmetric), 384
    rows = extreme_rows(columns)
    shape = (len(rows), scheme.blocks(columns))
    packed, scales = np.zeros((*shape, scheme.row_bytes(block_size)), np.uint8), np.zeros(shape, np.float32)
    zero_points = np.zeros((len(rows), scheme.zero_point_bytes(columns)), np.uint8)
    quantize = getattr(ort_quantizers, f"quantize_matmul_{bits}bits")
    quantize(packed, np.ascontiguousarray(rows.T), scales, zero_points, block_size, len(rows), columns, symmetric)
    found = encode(rows, scheme, "rtn")
    np.testing.assert_array_equal(found.packed, packed.reshape(len(rows), -1))
    np.testing.assert_array_equal(found.scales.view(np.uint32), scales.view(np.uint32))
    if symmetric:
        assert found.zero_points is None
    else:
        np.testing.assert_array_equal(found.zero_points, zero_points)


@pytest.mark.parametrize("method", ENCODERS)
def test_zero_blocks_stay_zero(method: str) -> None:
    rows = random_rows(2, 64)
    rows[:, :32] = 0
    values = dequantize(encode(rows, Scheme(4, 32, False), method), Scheme(4, 32, False))
    assert np.all(values[:, :32] == 0)
    assert np.all(np.isfinite(values))


def test_k_quant_is_more_accurate_than_rtn_for_weights_with_outliers() -> None:
    rows, scheme = random_rows(16, 512) ** 3, Scheme(4, 128, False)
    errors = [
        float(np.square(dequantize(encode(rows, scheme, name), scheme) - rows).sum()) for name in ("rtn", "k-quant")
    ]
    assert errors[1] < errors[0]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("method", ENCODERS)
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e20])
def test_blocks_of_one_sign_keep_their_values(bits: int, method: str, size: float) -> None:
    rows = (np.abs(random_rows(6, 64)) + 1) * np.float32(size)
    rows[0] = size
    rows[1::2] *= -1
    scheme = Scheme(bits, 32, False)
    values = dequantize(encode(rows, scheme, method), scheme)
    step = np.abs(rows).reshape(6, 2, 32).max(-1).repeat(32).reshape(6, 64) / (2**bits - 1)
    assert np.all(np.abs(values - rows) <= 0.51 * step)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_largest_value_bounds_the_values(scheme: Scheme) -> None:
    rows = random_rows(4, 256)
    blocks = encode(rows, scheme, "rtn")
    largest = float(np.abs(dequantize(blocks, scheme)).max())
    assert largest <= largest_value(blocks, scheme) <= 1.5 * largest
    blocks.scales[1, 0] = np.inf
    assert not np.isfinite(largest_value(blocks, scheme))
