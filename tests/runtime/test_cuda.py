"""CUDA graphs and copies by the driver, without an engine. Needs a GPU."""

from threading import Thread

import numpy as np
import pytest

from liger_export.runtime.cuda import Cuda, has_gpu

pytestmark = pytest.mark.skipif(not has_gpu(), reason="needs an NVIDIA GPU")


def test_copies_in_managed_memory_are_captured_and_replayed() -> None:
    cuda = Cuda.open()
    first, second, third = (cuda.zeros((3, 5), "float32") for _ in range(3))

    def enqueue() -> None:
        cuda.copy(first, second)
        cuda.copy(second, third)

    launch = cuda.replayed(enqueue)
    for number in range(1, 6):
        first.fill(number)
        launch()
        cuda.synchronize()
        np.testing.assert_array_equal(third, np.full((3, 5), number, dtype=np.float32))


def test_addresses_are_written_moved_and_read_in_any_thread() -> None:
    cuda = Cuda.open()
    first, second = (cuda.zeros((3, 5), "float32") for _ in range(2))
    content, read = np.arange(5, dtype=np.float32), np.empty(5, dtype=np.float32)

    def work() -> None:
        cuda.use()
        cuda.store(content, first[1:].ctypes.data)
        cuda.move(first[1:].ctypes.data, second[2:].ctypes.data, content.nbytes)
        cuda.fetch(second[2:].ctypes.data, read)

    thread = Thread(target=work)
    thread.start()
    thread.join()
    np.testing.assert_array_equal(read, content)
    np.testing.assert_array_equal(second[:2], np.zeros((2, 5), dtype=np.float32))
