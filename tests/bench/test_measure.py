import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from liger_export.bench import BenchSettings, bench
from liger_export.bench.measure import in_process
from liger_export.bench.worker import PACKAGE, TRANSFORMER, Job
from liger_export.errors import (
    CheckpointError,
    EnvironmentMismatchError,
    InputError,
    PackageError,
    UnsupportedModelError,
)
from liger_export.package import read_manifest
from liger_export.state import bytes_per_session
from tests.recorder import Recorder
from tests.tiny import edit_json, write_base

SETTINGS = BenchSettings(contexts=(4, 600), tokens=3, repeats=2, threads=1)


@pytest.mark.slow
def test_a_package_without_a_transformer_has_constant_memory(package: Path) -> None:
    told = Recorder()
    report = bench(package, settings=SETTINGS, progress=told)
    assert [(row.system, row.context) for row in report.rows] == [(PACKAGE, 4), (PACKAGE, 600)]
    assert {row.memory_bytes for row in report.rows} == {bytes_per_session(read_manifest(package).state)}
    assert all(20e6 < row.peak_rss_bytes.median < 200e6 for row in report.rows)  # torch by itself takes more
    assert told.reports[0] == (0, 4, "package at 4")
    assert told.reports[-1][:2] == (4, 4)
    assert set(report.machine.versions) == {"onnxruntime"}


@pytest.mark.slow
def test_a_transformer_takes_turns_with_the_package(package: Path, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    told = Recorder()
    settings = BenchSettings(contexts=(16,), tokens=2, repeats=1, threads=1)
    report = bench(package, base, settings, told)
    assert told.stages == ["package at 16", "transformer at 16", "done"]
    assert report.systems == (PACKAGE, TRANSFORMER)
    assert report.of(TRANSFORMER)[0].memory_bytes == 16 * 2 * 2 * 2 * 8 * 4
    assert report.of(TRANSFORMER)[0].peak_rss_bytes.median > report.of(PACKAGE)[0].peak_rss_bytes.median
    assert report.against == "base"
    assert report.notes == ()
    assert "torch" in report.machine.versions


def test_a_process_that_measures_a_package_loads_neither_torch_nor_matplotlib(package: Path) -> None:
    job = json.dumps(asdict(Job(PACKAGE, str(package), 4, 1, 1, "float32", 0)))
    script = (
        "import sys\nfrom liger_export.bench.worker import main\n"
        f"sys.argv = ['worker', {job!r}]\nmain()\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(result.stdout.splitlines()[-1].split())
    assert loaded & {"torch", "transformers", "matplotlib"} == set()


@pytest.mark.slow
def test_a_workers_error_and_its_death_reach_the_caller(package: Path, tmp_path: Path) -> None:
    damaged = write_base(tmp_path / "base")
    (damaged / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        in_process(Job(TRANSFORMER, str(damaged), 4, 1, 1, "float32", 0))
    with pytest.raises(EnvironmentMismatchError, match="ended with code 1") as ended:
        in_process(Job(PACKAGE, str(package), -4, 1, 1, "float32", 0))
    assert "memory" in ended.value.fix


def test_invalid_inputs_are_refused_before_any_run(package: Path, package_copy: Path, tmp_path: Path) -> None:
    told = Recorder()
    with pytest.raises(InputError, match="contexts"):
        bench(package, settings=BenchSettings(contexts=()), progress=told)
    liger = write_base(tmp_path / "liger")
    edit_json(liger / "config.json", model_type="liger_gla")
    with pytest.raises(InputError, match="base checkpoint that it was linearized from"):
        bench(package, liger, SETTINGS, told)
    edit_json(liger / "config.json", model_type="llama")
    (liger / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        bench(package, liger, SETTINGS, told)
    edit_json(liger / "config.json", model_type="vit")
    with pytest.raises(UnsupportedModelError, match="'vit'"):
        bench(package, liger, SETTINGS, told)
    (package_copy / "model.onnx.data").write_bytes(b"cut")
    with pytest.raises(PackageError, match="was truncated"):
        bench(package_copy, settings=SETTINGS, progress=told)
    assert told.stages == []


@pytest.mark.slow
def test_a_difference_in_shape_is_noted(package: Path, tmp_path: Path) -> None:
    wider = write_base(tmp_path / "base", intermediate_size=64)
    settings = BenchSettings(contexts=(4,), tokens=1, repeats=1, threads=1)
    report = bench(package, wider, settings)
    assert "shape differs from the package's: intermediate_size." in report.footnotes[-1]
