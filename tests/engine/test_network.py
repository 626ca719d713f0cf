"""Writing the engine file."""

import errno
from pathlib import Path
from types import SimpleNamespace

import pytest

from liger_export.engine.network import _writer
from tests.fakes.tensorrt import fake_tensorrt


def test_a_failed_write_is_raised_when_the_file_is_closed(tmp_path: Path) -> None:
    """The library prints exceptions of its callbacks and continues: on a full disk it reports success."""
    writer = _writer(fake_tensorrt(), tmp_path / "engine")
    assert writer.write(b"first") == 5

    def full(data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    stream = writer._stream
    writer._stream = SimpleNamespace(write=full, tell=stream.tell, close=stream.close)
    assert writer.write(b"second") == 0
    with pytest.raises(OSError, match="No space"):
        writer.close()
