"""Memory growth in the manifest."""

from pathlib import Path
from types import SimpleNamespace

from liger_export.convert import convert
from liger_export.package import read_manifest
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
