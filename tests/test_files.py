import hashlib
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from liger_export.errors import OutputError
from liger_export.files import new_file, require_space, require_writable, sha256_meanwhile
from tests.interruption import interrupt, kill, runs_ended_by


def write(path: Path, text: str) -> None:
    """Write a text in two parts."""
    with new_file(path) as partial:
        partial.write_text(text[:1])
        with partial.open("a") as stream:
            stream.write(text[1:])


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_free_space_is_checked_before_work(tmp_path: Path) -> None:
    require_space(tmp_path / "a" / "b", 1)
    with pytest.raises(OutputError, match="MB free"):
        require_space(tmp_path / "a" / "b", 1 << 60)


def test_a_file_is_replaced_only_when_complete(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    write(file, "old")

    def interrupted() -> None:
        with new_file(file) as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert file.read_text() == "old"
    write(file, "new")
    assert file.read_text() == "new"
    assert names(tmp_path) == ["report.json"]


@pytest.mark.parametrize("ending", [kill, interrupt])
def test_rewriting_that_ends_at_any_moment_keeps_the_old_file_or_the_new_one(
    tmp_path: Path, ending: Callable[[], None]
) -> None:
    file = tmp_path / "report.json"
    write(file, "old")
    seen = []
    for _ in runs_ended_by(ending, lambda: write(file, "new")):
        seen.append(file.read_text())
        write(file, "old")
        assert names(tmp_path) == ["report.json"]
    assert (seen[0], seen[-1], set(seen)) == ("old", "new", {"old", "new"})


def test_a_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    """The limit on the size of files has the effect of a full disk."""
    file = tmp_path / "report.json"
    write(file, "old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"report\.json cannot be written: File too large"):
            write(file, "new" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_text() == "old"
    assert names(tmp_path) == ["report.json"]


def test_a_file_keeps_its_permissions_and_links_to_it(tmp_path: Path) -> None:
    file, link = tmp_path / "report.json", tmp_path / "link"
    write(file, "old")
    file.chmod(0o640)
    link.symlink_to(file)
    write(link, "new")
    assert link.is_symlink()
    assert file.read_text() == "new"
    assert file.stat().st_mode & 0o777 == 0o640


def test_devices_and_pipes_are_written_directly(tmp_path: Path) -> None:
    write(Path("/dev/null"), "text")
    assert not Path("/dev/null").is_file()
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write(tmp_path / "pipe", "text")
    assert os.read(reader, 100) == b"text"
    os.close(reader)
    assert names(tmp_path) == ["pipe"]


def test_a_file_in_a_read_only_directory_is_refused_before_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "report.json").write_text("old")
    require_writable(tmp_path / "report.json")
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != tmp_path)  # root may write whatever the mode says
    with pytest.raises(OutputError, match="cannot be written"):
        require_writable(tmp_path / "report.json")


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="missing is not a directory"):
        write(tmp_path / "missing" / "report.json", "text")


def test_hashes_are_computed_during_other_work(tmp_path: Path) -> None:
    files = {tmp_path / "large": bytes(range(256)) * (3 << 14), tmp_path / "empty": b""}
    for path, content in files.items():
        path.write_bytes(content)
    with sha256_meanwhile(files) as digests:
        found = digests.result()
    assert found == {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}


def test_hashing_stops_when_the_work_fails(tmp_path: Path) -> None:
    with (tmp_path / "endless").open("wb") as stream:
        stream.truncate(1 << 42)  # hashing it would take half an hour
    with pytest.raises(ValueError, match="failed"), sha256_meanwhile([tmp_path / "endless"]):
        raise ValueError("failed")
