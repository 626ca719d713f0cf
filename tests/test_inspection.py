"""``inspect``: the contract that it prints is that of the graph files."""

import hashlib
import json
from pathlib import Path

import onnx
import pytest

from liger_export.config import MIXERS
from liger_export.convert import convert
from liger_export.engine.build import EngineSettings, build_engine
from liger_export.errors import PackageError
from liger_export.inspection import read_contract
from liger_export.linearize import LinearizeSettings
from tests.cells import slow_except
from tests.tiny import edit_json, write_liger


@pytest.mark.parametrize("mixer", slow_except(["gla"], MIXERS))
def test_the_contract_is_that_of_the_files(mixer: str, tmp_path: Path) -> None:
    settings = LinearizeSettings(mixer=mixer, num_slots=4 if mixer == "gsa" else None, keep_softmax_every=2)
    checkpoint = write_liger(tmp_path / "liger", settings=settings)
    convert(checkpoint, tmp_path / "package", lowering="fused")
    found = read_contract(tmp_path / "package")  # which compares them
    assert found["graphs"]["model.onnx"]["outputs"][0]["shape"] == ("batch", "kept", found["vocab_size"])
    assert set(found["graphs"]) == {"model.onnx", "model.fused.onnx"}


@pytest.mark.slow
def test_the_contract_of_an_engine_has_fixed_sizes(package: Path, tmp_path: Path) -> None:
    build_engine(package, tmp_path / "engine", EngineSettings(backend="onnx", chunk=32, check_tokens=0))
    graphs = read_contract(tmp_path / "engine")["graphs"]
    assert {name: graph["inputs"][0]["shape"] for name, graph in graphs.items()} == {
        "step.onnx": (1, 1),
        "prefill.onnx": (1, 32),
    }


def test_a_graph_with_other_inputs_is_refused(package_copy: Path) -> None:
    model = onnx.load(package_copy / "model.onnx", load_external_data=False)
    model.graph.input[2].name = "other"
    onnx.save(model, package_copy / "model.onnx")
    content = (package_copy / "model.onnx").read_bytes()
    files = json.loads((package_copy / "manifest.json").read_text())["files"]
    files["model.onnx"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit_json(package_copy / "manifest.json", files=files)
    with pytest.raises(PackageError, match=r"model\.onnx in .* has other inputs or outputs"):
        read_contract(package_copy)
