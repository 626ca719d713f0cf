import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from liger_export.errors import OutputError
from liger_export.files import new_directory, require_replaceable, require_space


def fill(path: Path) -> None:
    with new_directory(path) as partial:
        (partial / "file").write_text("text")


def test_directory_appears_only_when_complete(tmp_path: Path) -> None:
    fill(tmp_path / "deep" / "out")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    assert (tmp_path / "deep" / "out" / "file").read_text() == "text"


def test_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupted() -> None:
        with new_directory(tmp_path / "out") as partial:
            (partial / "file").write_text("text")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_existing_output_is_kept_unless_overwriting(tmp_path: Path) -> None:
    out = tmp_path / "out"
    fill(out)
    with pytest.raises(OutputError, match="--overwrite"):
        fill(out)
    with pytest.raises(OutputError, match="was not written by liger-export"):
        require_replaceable(out, overwrite=True)
    (out / "manifest.json").write_text("{}")
    with pytest.raises(OutputError, match="is, or contains, an input"):
        require_replaceable(out, overwrite=True, inputs=(tmp_path / "." / "out",))
    with new_directory(out, overwrite=True) as partial:
        (partial / "other").write_text("")
    assert [path.name for path in out.iterdir()] == ["other"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_full_disk_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"No space left.*Free some disk space"), new_directory(tmp_path / "out"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []


def test_free_space_is_checked_before_work(tmp_path: Path) -> None:
    require_space(tmp_path / "a" / "b", 1)
    with pytest.raises(OutputError, match="MB free"):
        require_space(tmp_path / "a" / "b", 1 << 60)


def test_next_run_removes_the_leftovers_of_a_killed_process(tmp_path: Path) -> None:
    script = (
        "import os, pathlib, signal\nfrom liger_export.files import new_directory\n"
        f"with new_directory(pathlib.Path({str(tmp_path / 'out')!r})) as partial:\n"
        "    (partial / 'file').write_text('text')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    assert [path.name.startswith(".out.partial-") for path in tmp_path.iterdir()] == [True]
    fill(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
