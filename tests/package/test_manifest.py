import json
from pathlib import Path

import pytest

from liger_export.errors import PackageError
from liger_export.package import read_manifest
from liger_export.package.manifest import FORMAT_VERSION, OLDEST_FORMAT
from tests.tiny import edit_json


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_an_unchanged_package_passes(package: Path) -> None:
    manifest = read_manifest(package)
    manifest.check_files(package)
    assert manifest.state[0].past_name == "past_key_values.0.recurrent_state"


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "tokenizer.json"])
def test_changed_truncated_and_missing_files_are_named(package_copy: Path, name: str) -> None:
    manifest = read_manifest(package_copy)
    file = package_copy / name
    flip_last_byte(file)
    with pytest.raises(PackageError, match=f"{name} has changed"):
        manifest.check_files(package_copy)
    if name == "model.onnx.data":  # large, so hashed only on request
        manifest.check_files(package_copy, weights=False)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(PackageError, match=f"{name} has .* was truncated"):
        manifest.check_files(package_copy, weights=False)
    file.unlink()
    with pytest.raises(PackageError, match=f"{name} is missing"):
        manifest.check_files(package_copy, weights=False)


def test_a_newer_format_asks_for_an_upgrade(package_copy: Path) -> None:
    edit_json(package_copy / "manifest.json", format_version=FORMAT_VERSION + 1)
    with pytest.raises(PackageError, match="Upgrade"):
        read_manifest(package_copy)


def test_an_older_format_asks_for_another_conversion(package_copy: Path) -> None:
    edit_json(package_copy / "manifest.json", format_version=OLDEST_FORMAT - 1)
    with pytest.raises(
        PackageError, match=rf"reads {OLDEST_FORMAT} to {FORMAT_VERSION}\. Convert the checkpoint again"
    ):
        read_manifest(package_copy)


def test_format_3_is_read_and_is_written_in_the_current_format(package_copy: Path) -> None:
    expected, path = read_manifest(package_copy), package_copy / "manifest.json"
    precision = json.loads(path.read_text())["precision"]
    del precision["activation_precision"]
    edit_json(path, format_version=3, precision=precision)
    assert read_manifest(package_copy) == expected
    path.write_text(read_manifest(package_copy).to_json())
    assert json.loads(path.read_text())["format_version"] == FORMAT_VERSION
    assert read_manifest(package_copy) == expected


def test_graphs_of_format_4_do_not_have_exact_angles(package_copy: Path) -> None:
    path = package_copy / "manifest.json"
    assert read_manifest(package_copy).graphs["stock"].exact_angles
    graphs = json.loads(path.read_text())["graphs"]
    del graphs["stock"]["exact_angles"]
    edit_json(path, format_version=4, graphs=graphs)
    path.write_text(read_manifest(package_copy).to_json())
    assert json.loads(path.read_text())["format_version"] == FORMAT_VERSION
    assert not read_manifest(package_copy).graphs["stock"].exact_angles


@pytest.mark.parametrize(
    "changes",
    [
        {"config": {}},
        {"unknown": 1},
        {"state": {"bytes_per_session": 1}},
        {"format_version": "one"},
        {"files": {}},
        {"source": None},
    ],
)
def test_a_damaged_manifest_is_rejected(package_copy: Path, changes: dict[str, object]) -> None:
    edit_json(package_copy / "manifest.json", **changes)
    with pytest.raises(PackageError):
        read_manifest(package_copy)


def test_a_directory_without_a_manifest_is_not_a_package(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="is not a package"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(PackageError, match="damaged"):
        read_manifest(tmp_path)
