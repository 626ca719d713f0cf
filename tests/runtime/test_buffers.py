"""Rows of buffers, which are bound by address."""

import ctypes

import numpy as np

from liger_export.runtime.buffers import HostBuffer, rows_of


def test_a_row_lies_inside_its_buffer() -> None:
    buffer = HostBuffer(np.array([[5, 6, 7], [10, 11, 12]]))
    row = rows_of(buffer, 1)
    assert (row.shape, row.dtype) == ((1, 3), np.int64)
    assert list((ctypes.c_int64 * 3).from_address(row.address)) == [10, 11, 12]
