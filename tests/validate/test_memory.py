"""Memory growth in the manifest."""

import resource
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from liger_export.convert import convert
from liger_export.errors import OutputError
from liger_export.package import read_manifest
from liger_export.runtime.growth import Growth
from liger_export.validate import ValidationSettings, validate
from liger_export.validate.memory import measure_memory, record_memory
from tests.plugins.sessions import needs_library


@needs_library
def test_memory_of_a_graph_for_a_gpu_is_measured_on_the_cpu(liger_checkpoint: Path, tmp_path: Path) -> None:
    convert(liger_checkpoint, tmp_path / "package", lowering="fused")
    on_gpu = SimpleNamespace(lowering="cuda", device="cuda", manifest=read_manifest(tmp_path / "package"))
    growth = measure_memory(tmp_path / "package", on_gpu, 128)  # type: ignore[arg-type]
    assert (growth.from_token, growth.to_token) == (64, 128)
    record_memory(tmp_path / "package", on_gpu.manifest, growth)
    assert read_manifest(tmp_path / "package").memory is not None


def test_measured_growth_is_written_into_the_manifest(
    package_copy: Path, liger_checkpoint: Path, random_text: Path
) -> None:
    settings = ValidationSettings(text=random_text, max_tokens=4096, memory_tokens=200)
    validate(package_copy, liger_checkpoint, settings)
    memory = read_manifest(package_copy).memory
    assert memory is not None
    assert (memory["from_token"], memory["to_token"], memory["bytes_grown"]) == (64, 200, 0)


GROWTH = Growth(from_token=64, to_token=200, bytes_grown=0, bytes_per_token=0.0, texts=1, onnxruntime="1.31.0")


def test_a_full_disk_keeps_the_manifest(package_copy: Path) -> None:
    """The limit on the size of files has the effect of a full disk."""
    manifest = read_manifest(package_copy)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"manifest\.json cannot be written"):
            record_memory(package_copy, manifest, GROWTH)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert read_manifest(package_copy) == manifest


def test_the_manifest_of_another_package_is_not_written_over_one_that_replaced_it(package_copy: Path) -> None:
    measured = read_manifest(package_copy)
    other = replace(measured, source={**measured.source, "name": "other"})
    (package_copy / "manifest.json").write_text(other.to_json())
    with pytest.raises(OutputError, match="has been replaced while it was measured"):
        record_memory(package_copy, measured, GROWTH)
    assert read_manifest(package_copy) == other
