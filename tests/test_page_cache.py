import os
from pathlib import Path

import pytest

from liger_export import page_cache
from liger_export.page_cache import LARGE, drop_cached, read_ahead


def is_cached(path: Path) -> bool:
    with path.open("rb") as stream:
        try:
            os.preadv(stream.fileno(), [bytearray(1)], path.stat().st_size // 2, os.RWF_NOWAIT)
        except BlockingIOError:
            return False
    return True


def test_a_dropped_file_is_read_again_and_a_cached_one_is_not(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(bytes(3 << 22))
    drop_cached(file)
    if is_cached(file):
        pytest.skip("needs a file system that drops pages and reports it, which this one does not")
    assert read_ahead(file)
    assert is_cached(file)
    assert not read_ahead(file)
    assert file.read_bytes() == bytes(3 << 22)


def test_a_file_in_small_pages_is_read_again_in_large_ones(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    content = os.urandom(8 * LARGE)
    file.write_bytes(content)
    with file.open("rb", buffering=0) as stream:
        drop_cached(file)
        if not page_cache._can_have_large_pages(file, stream, len(content)):
            pytest.skip("needs a file system with large pages in its cache, such as ext4 on Linux 6")
        drop_cached(file)
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # nothing is read ahead
        while stream.read(4096):
            pass
    assert page_cache._share_in_large_pages(file, 0, len(content)) < 0.5
    assert read_ahead(file)
    assert page_cache._share_in_large_pages(file, 0, len(content)) > 0.7
    assert not read_ahead(file)
    assert file.read_bytes() == content


def test_a_file_system_without_large_pages_is_left_alone() -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or not os.access(memory, os.W_OK):
        pytest.skip("needs /dev/shm")
    file = memory / f"liger-export-test-{os.getpid()}"
    try:
        file.write_bytes(bytes(4 * LARGE))
        assert not read_ahead(file)
    finally:
        file.unlink(missing_ok=True)


def test_a_small_file_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    for content in (b"", b"weights"):
        file.write_bytes(content)
        assert not read_ahead(file)
