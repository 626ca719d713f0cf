"""What the builder's callbacks must not lose."""

import errno
from pathlib import Path
from types import SimpleNamespace

import pytest

from liger_export.engine.network import _writer


def test_an_engine_that_could_not_be_written_whole_is_no_engine(tmp_path: Path) -> None:
    """The library prints what its callbacks raise, and goes on: on a full disk it says that it built."""
    writer = _writer(SimpleNamespace(IStreamWriter=object), tmp_path / "engine")
    assert writer.write(b"first") == 5

    def full(data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    stream = writer._stream
    writer._stream = SimpleNamespace(write=full, tell=stream.tell, close=stream.close)
    assert writer.write(b"second") == 0
    with pytest.raises(OSError, match="No space"):
        writer.close()
