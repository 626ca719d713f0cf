from pathlib import Path

import pytest

from liger_export.publishing.renames import exchange, rename_new


@pytest.fixture(params=["directory", "file", "empty directory", "link"])
def taken(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "taken"
    if request.param == "file":
        path.write_text("mine")
    elif request.param == "link":
        path.symlink_to("nothing")
    else:
        path.mkdir()
        if request.param == "directory":
            (path / "file").write_text("mine")
    return path


@pytest.mark.parametrize("supported", [True, False])
def test_nothing_is_replaced(taken: Path, supported: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not supported:
        monkeypatch.setattr("liger_export.publishing.renames._rename", lambda *_: False)
    new, before = taken.with_name("new"), taken.lstat()
    new.mkdir()
    assert not rename_new(new, taken)
    assert taken.lstat().st_ino == before.st_ino
    assert new.is_dir()
    assert rename_new(new, taken.with_name("free"))
    assert not new.exists()


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_without_support_the_system_still_keeps_what_appears_after_the_check(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("liger_export.publishing.renames._rename", lambda *_: False)
    answers = iter([False, True])
    monkeypatch.setattr("os.path.lexists", lambda _: next(answers))
    (tmp_path / "new").mkdir()
    own = tmp_path / "taken" if kind == "file" else tmp_path / "taken" / "file"
    own.parent.mkdir(exist_ok=True)
    own.write_text("mine")
    assert not rename_new(tmp_path / "new", tmp_path / "taken")
    assert own.read_text() == "mine"


def test_names_are_exchanged(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("")
    if not exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this system or file system cannot exchange two names")
    assert (tmp_path / "a" / "b").exists()
    assert (tmp_path / "b" / "a").exists()


def test_a_missing_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        rename_new(tmp_path / "missing", tmp_path / "new")
