"""Only what this project wrote is replaced."""

import json
import shutil
from pathlib import Path

import pytest

from liger_export.errors import OutputError
from liger_export.files import TOOL_USE_TEMPLATE
from liger_export.linearize import linearize
from liger_export.publishing import new_directory, require_replaceable
from tests.interruption import kill, runs_ended_by
from tests.tiny import edit_json, write_base

FOREIGN = {
    "web app": {"manifest.json": '{"name": "app", "icons": []}', "index.html": "<p>"},
    "empty manifest": {"manifest.json": ""},
    "deep manifest": {"manifest.json": "[" * 100_000},
    "another's files": {"manifest.json": json.dumps({"files": {"a": {"bytes": 1}}}), "a": "a"},
    "list of files": {"manifest.json": json.dumps({"liger_export": "0.1.0", "files": ["a"]}), "a": "a"},
    "settings": {"config.json": "{}", "notes.txt": "mine"},
    "adapter": {"adapter_config.json": "{}", "adapter_model.safetensors": ""},
}


@pytest.mark.parametrize("files", FOREIGN.values(), ids=FOREIGN.keys())
def test_directories_of_others_are_kept(tmp_path: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(OutputError, match=r"was not written by liger-export.*remove it yourself"):
        require_replaceable(tmp_path, overwrite=True)


def test_packages_of_every_format_are_replaced(package_copy: Path) -> None:
    (package_copy / "parity.json").write_text("{}")  # validate's
    require_replaceable(package_copy, overwrite=True)
    edit_json(package_copy / "manifest.json", format_version=1)
    with new_directory(package_copy, overwrite=True) as partial:
        (partial / "new").touch()
    assert "new" in {path.name for path in package_copy.iterdir()}
    assert not (package_copy / "manifest.json").exists()


def test_a_checkpoint_with_a_folder_is_replaced_until_a_file_is_added_to_it(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    template = base / TOOL_USE_TEMPLATE
    template.parent.mkdir()
    template.write_text("{{ tools }}")
    for _ in range(2):
        linearize(str(base), tmp_path / "liger", overwrite=True)
    assert (tmp_path / "liger" / TOOL_USE_TEMPLATE).read_text() == "{{ tools }}"
    (tmp_path / "liger" / template.parent.name / "mine.txt").touch()
    with pytest.raises(OutputError, match=r"mine\.txt was not written by liger-export"):
        linearize(str(base), tmp_path / "liger", overwrite=True)


def test_a_package_with_a_file_of_the_users_is_kept(package_copy: Path) -> None:
    (package_copy / "README.md").write_text("mine")
    with pytest.raises(OutputError, match=r"README\.md was not written by liger-export"):
        require_replaceable(package_copy, overwrite=True)


@pytest.mark.parametrize("kind", ["changed", "directory", "link"])
def test_a_package_whose_file_the_user_replaced_is_kept(package_copy: Path, tmp_path: Path, kind: str) -> None:
    file = package_copy / "tokenizer.json"
    other = Path(shutil.move(file, tmp_path / "other"))
    if kind == "changed":
        file.write_text(other.read_text() + " ")
    elif kind == "directory":
        file.mkdir()
    else:
        file.symlink_to(other)
    with pytest.raises(OutputError, match=r"tokenizer\.json was not written by liger-export, or has changed since"):
        require_replaceable(package_copy, overwrite=True)


def test_checkpoints_are_replaced_until_something_is_added(tmp_path: Path) -> None:
    base, out = write_base(tmp_path / "base"), tmp_path / "out"
    linearize(str(base), out)
    linearize(str(base), out, overwrite=True)
    (out / "optimizer.pt").write_text("mine")
    with pytest.raises(OutputError, match=r"optimizer\.pt was not written by liger-export"):
        linearize(str(base), out, overwrite=True)


def test_leftovers_of_a_killed_validate_do_not_stop_replacing(package_copy: Path) -> None:
    from liger_export.files import new_file

    def rewrite() -> None:
        with new_file(package_copy / "manifest.json") as file:
            file.write_text(text)

    text = (package_copy / "manifest.json").read_text()
    for _ in runs_ended_by(kill, rewrite):
        require_replaceable(package_copy, overwrite=True)
        assert (package_copy / "manifest.json").read_text() == text


def test_a_record_lists_sizes(tmp_path: Path) -> None:
    with new_directory(tmp_path / "out") as partial:
        (partial / "file").write_text("text")
    assert json.loads((tmp_path / "out" / ".liger-export").read_text())["files"] == {"file": {"bytes": 4}}
