import json
import os
from pathlib import Path
from time import monotonic
from typing import Any

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


@pytest.mark.parametrize("field", ["num_hidden_layers", "vocab_size", "window_size", "head_dim"])
@pytest.mark.parametrize("value", [10**6, 2**32, 2**100])
def test_a_size_that_the_files_cannot_hold_is_refused_at_once(package_copy: Path, field: str, value: int) -> None:
    config = json.loads((package_copy / "manifest.json").read_text())["config"]
    edit_json(package_copy / "manifest.json", config={**config, field: value})
    start = monotonic()
    with pytest.raises(PackageError, match="damaged"):
        read_manifest(package_copy)
    assert monotonic() - start < 1


@pytest.mark.parametrize("field", ["eos_token_id", "rms_norm_eps", "hidden_size"])
def test_a_manifest_that_was_changed_is_damaged(package_copy: Path, field: str) -> None:
    path = package_copy / "manifest.json"
    text = path.read_text()
    values = json.loads(text)
    path.write_text(json.dumps(values))  # the same values, written in another way
    read_manifest(package_copy)
    values["config"][field] = 1
    path.write_text(json.dumps(values))
    with pytest.raises(PackageError, match=r"manifest\.json is damaged.*SHA-256"):
        read_manifest(package_copy)


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


@pytest.mark.parametrize("levels", [65, 900, 10**6])
def test_a_manifest_that_is_nested_too_deeply_is_damaged(package_copy: Path, levels: int) -> None:
    manifest = package_copy / "manifest.json"
    manifest.write_text(manifest.read_text().replace("{", f'{{"more": {nested(levels)},', 1))
    with pytest.raises(PackageError, match="nested"):
        read_manifest(package_copy)


def test_a_pipe_or_a_device_is_not_waited_for(package_copy: Path) -> None:
    manifest = package_copy / "manifest.json"
    manifest.unlink()
    os.mkfifo(manifest)
    with pytest.raises(PackageError, match="not a regular file"):
        read_manifest(package_copy)
    manifest.unlink()
    manifest.symlink_to("/dev/zero")
    with pytest.raises(PackageError, match="not a regular file"):
        read_manifest(package_copy)


@pytest.mark.parametrize("name", ["../tokenizer.json", "/etc/hostname", "sub/model.onnx", "..", ""])
def test_files_outside_the_directory_are_not_listed(package_copy: Path, name: str) -> None:
    files: dict[str, Any] = json.loads((package_copy / "manifest.json").read_text())["files"]
    edit_json(package_copy / "manifest.json", files={**files, name: files["tokenizer.json"]})
    with pytest.raises(PackageError, match="not a plain file name"):
        read_manifest(package_copy)


def test_a_directory_without_a_manifest_is_not_a_package(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="is not a package"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(PackageError, match="damaged"):
        read_manifest(tmp_path)
