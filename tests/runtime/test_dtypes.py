"""Conversion of bfloat16 bits, compared with ml_dtypes."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from liger_export.runtime.dtypes import element_type, narrowed, numpy_dtype, widened

BITS = np.arange(1 << 16, dtype=np.uint16)


def test_every_bfloat16_converts_to_float32_and_back_exactly() -> None:
    values = widened(BITS)
    np.testing.assert_array_equal(values, BITS.view(ml_dtypes.bfloat16).astype(np.float32))
    numbers = ~np.isnan(values)
    np.testing.assert_array_equal(narrowed(values, "bfloat16")[numbers], BITS[numbers])
    assert np.isnan(widened(narrowed(values[~numbers], "bfloat16"))).all()


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1))
def test_any_float32_is_rounded_to_the_nearest_bfloat16(numbers: list[float]) -> None:
    values = np.array(numbers, dtype=np.float32)
    np.testing.assert_array_equal(narrowed(values, "bfloat16"), values.astype(ml_dtypes.bfloat16).view(np.uint16))


def test_ties_are_rounded_to_even() -> None:
    halves = np.array([0x3F808000, 0x3F818000, 0x7F7FFFFF], dtype=np.uint32).view(np.float32)
    assert narrowed(halves, "bfloat16").tolist() == [0x3F80, 0x3F82, 0x7F80]


@pytest.mark.parametrize("name", ["float32", "float16"])
def test_other_dtypes_are_converted_by_numpy(name: str) -> None:
    values = np.array([0.1, -3.0], dtype=np.float32)
    held = narrowed(values, name)
    assert held.dtype == numpy_dtype(name) == np.dtype(name)
    np.testing.assert_array_equal(widened(held), values.astype(name).astype(np.float32))


def test_element_types_are_those_of_onnx() -> None:
    from onnx import TensorProto

    names = {"float32": "FLOAT", "float16": "FLOAT16", "bfloat16": "BFLOAT16", "int64": "INT64"}
    for name, onnx_name in names.items():
        assert element_type(numpy_dtype(name)) == TensorProto.DataType.Value(onnx_name)
