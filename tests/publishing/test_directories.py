import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from liger_export.errors import OutputError
from liger_export.publishing import RECORD_FILE, new_directory, require_replaceable
from tests.cells import slow_except
from tests.interruption import interrupt, kill, runs_ended_by


def fill(
    path: Path, text: str = "text", *, overwrite: bool = False, meanwhile: Callable[[], object] = lambda: None
) -> None:
    """Write an output. ``meanwhile`` is called before it is complete."""
    with new_directory(path, overwrite) as partial:
        (partial / "file").write_text(text)
        meanwhile()
        (partial / "other").write_text(text)


def content(path: Path) -> set[str]:
    """The texts of a complete output."""
    assert {entry.name for entry in path.iterdir()} == {"file", "other", RECORD_FILE}
    return {(path / name).read_text() for name in ("file", "other")}


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def in_one_step(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Return True if the file system can exchange two names, and rename without replacing."""
    if not request.param:
        monkeypatch.setattr("liger_export.publishing.renames._rename", lambda *_: False)
    return bool(request.param)


each_rename = pytest.mark.parametrize("in_one_step", [True, False], indirect=True)


def test_directory_appears_only_when_complete(tmp_path: Path) -> None:
    fill(tmp_path / "deep" / "out")
    assert names(tmp_path / "deep") == ["out"]
    assert content(tmp_path / "deep" / "out") == {"text"}


def test_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "out", meanwhile=interrupt)
    assert names(tmp_path) == []


def test_full_disk_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"No space left.*Free some disk space"), new_directory(tmp_path / "out"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert names(tmp_path) == []


@each_rename
def test_existing_output_is_kept_unless_overwriting(tmp_path: Path, in_one_step: bool) -> None:
    out = tmp_path / "out"
    fill(out)
    with pytest.raises(OutputError, match="--overwrite"):
        fill(out, "new")
    with pytest.raises(OutputError, match="is, or contains, an input"):
        require_replaceable(out, overwrite=True, inputs=(tmp_path / "." / "out",))
    assert content(out) == {"text"}
    fill(out, "new", overwrite=True)
    assert content(out) == {"new"}
    assert names(tmp_path) == ["out"]


def test_an_empty_directory_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    fill(tmp_path / "out", overwrite=True)
    assert content(tmp_path / "out") == {"text"}


@each_rename
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_what_appears_meanwhile_is_kept(tmp_path: Path, in_one_step: bool, overwrite: bool, kind: str) -> None:
    def appear() -> None:
        own.parent.mkdir(exist_ok=True)
        own.write_text("mine")

    own = tmp_path / "out" if kind == "file" else tmp_path / "out" / "notes"
    with pytest.raises(OutputError):
        fill(tmp_path / "out", overwrite=overwrite, meanwhile=appear)
    assert own.read_text() == "mine"
    assert names(tmp_path) == ["out"]


@each_rename
def test_an_empty_directory_that_appears_meanwhile_is_kept(tmp_path: Path, in_one_step: bool) -> None:
    with pytest.raises(OutputError, match="already exists"):
        fill(tmp_path / "out", meanwhile=(tmp_path / "out").mkdir)
    assert names(tmp_path / "out") == []


@each_rename
def test_the_first_of_two_writers_wins(tmp_path: Path, in_one_step: bool) -> None:
    with pytest.raises(OutputError, match="already exists"):
        fill(tmp_path / "out", "slower", meanwhile=lambda: fill(tmp_path / "out", "faster"))
    assert content(tmp_path / "out") == {"faster"}
    assert names(tmp_path) == ["out"]


def test_a_file_added_while_the_output_is_replaced_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file appears after the last check and before the exchange."""
    from liger_export.publishing import directories

    def exchange_late(first: Path, second: Path) -> bool:
        (out / "notes").write_text("mine")
        return exchange(first, second)

    out, exchange = tmp_path / "out", directories.exchange
    fill(out)
    monkeypatch.setattr(directories, "exchange", exchange_late)
    with pytest.raises(OutputError, match="notes was not written by liger-export"):
        fill(out, "new", overwrite=True)
    assert (out / "notes").read_text() == "mine"
    assert (out / "file").read_text() == "text"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("target", ["package", "nothing"])
def test_a_link_is_refused_before_work(tmp_path: Path, target: str) -> None:
    fill(tmp_path / "package")
    (tmp_path / "link").symlink_to(target)
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="symbolic link"):
            require_replaceable(tmp_path / "link", overwrite)
    assert content(tmp_path / "package") == {"text"}


def test_a_mount_point_is_refused_before_work() -> None:
    with pytest.raises(OutputError, match="mount point"):
        require_replaceable(Path("/proc"), overwrite=True)


@each_rename
@pytest.mark.parametrize("ending", slow_except([kill], [kill, interrupt]))
def test_a_run_that_ends_at_any_moment_leaves_the_output_whole_or_absent(
    tmp_path: Path, in_one_step: bool, ending: Callable[[], None]
) -> None:
    out = tmp_path / "out"
    for _ in runs_ended_by(ending, lambda: fill(out)):
        whole = out.exists()
        assert not whole or content(out) == {"text"}
        fill(out, overwrite=whole)
        assert names(tmp_path) == ["out"]
        for path in out.iterdir():
            path.unlink()
        out.rmdir()


@pytest.mark.slow
@each_rename
@pytest.mark.parametrize("ending", [kill, interrupt])
def test_replacing_that_ends_at_any_moment_keeps_the_old_output_or_the_new_one(
    tmp_path: Path, in_one_step: bool, ending: Callable[[], None]
) -> None:
    out = tmp_path / "out"
    fill(out, "old")
    seen = []
    for _ in runs_ended_by(ending, lambda: fill(out, "new", overwrite=True)):
        if in_one_step or ending is interrupt:
            assert content(out) in ({"old"}, {"new"})
        with pytest.raises(OutputError, match="already exists"):
            require_replaceable(out, overwrite=False)  # the start of the next run
        seen.append(content(out))
        assert names(tmp_path) == ["out"]
        fill(out, "old", overwrite=True)
    assert seen[0] == {"old"}
    assert seen[-1] == {"new"}


def test_if_the_second_of_two_renames_fails_the_old_output_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_once(source: Path, target: Path) -> None:
        if target == out and not failed:
            failed.append(True)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(source, target)

    out, rename, failed = tmp_path / "out", os.rename, list[bool]()
    fill(out, "old")
    monkeypatch.setattr("liger_export.publishing.renames._rename", lambda *_: False)
    monkeypatch.setattr(os, "rename", fail_once)
    with pytest.raises(OSError, match="Input/output"):
        fill(out, "new", overwrite=True)
    assert content(out) == {"old"}
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("name", ["out", "pkg[1]", "a*b?"])
def test_next_run_removes_the_leftovers_of_a_killed_process_whatever_its_id(tmp_path: Path, name: str) -> None:
    """In containers every run has process id 1. Here the killed process has the id of one that still runs."""
    script = (
        "import os, pathlib, signal\nfrom liger_export.publishing import new_directory\n"
        f"own, os.getpid = os.getpid(), lambda: {os.getpid()}\n"
        f"with new_directory(pathlib.Path({str(tmp_path / name)!r})) as partial:\n"
        "    (partial / 'file').write_text('text')\n    os.kill(own, signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    assert any(left.startswith(f".{name}.partial-") for left in names(tmp_path))
    fill(tmp_path / name)
    assert names(tmp_path) == [name]


def test_a_run_keeps_the_partial_output_of_a_running_process_whatever_its_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process in another container has an id that no process has here."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: 2**22 + 1)
        fill(tmp_path / "out", "running", overwrite=True, meanwhile=lambda: fill(tmp_path / "out", "meanwhile"))
    assert content(tmp_path / "out") == {"running"}
    assert names(tmp_path) == ["out"]


def test_without_locks_leftovers_stay_and_outputs_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a network file system that is mounted without a lock service."""

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", no_locks)
    fill(tmp_path / "out", "slower", overwrite=True, meanwhile=lambda: fill(tmp_path / "out", "faster"))
    assert content(tmp_path / "out") == {"slower"}
    assert names(tmp_path) == ["out"]


def test_everything_is_on_the_disk_before_it_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from liger_export.publishing import directories

    def publish(partial: Path, path: Path) -> bool:
        synced.append(None)
        return rename_new(partial, path)

    rename_new, fsync = directories.rename_new, os.fsync
    synced: list[int | None] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(os.fstat(descriptor).st_ino), fsync(descriptor)))
    monkeypatch.setattr(directories, "rename_new", publish)
    out = tmp_path / "out"
    fill(out)
    published = synced.index(None)
    assert set(synced[:published]) == {path.stat().st_ino for path in (out, *out.iterdir())}
    assert synced[published + 1 :] == [tmp_path.stat().st_ino]
