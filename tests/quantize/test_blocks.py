import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
