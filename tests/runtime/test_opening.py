"""The graph and device that ``load`` chooses, and its errors."""

import json
from pathlib import Path
from typing import Any

import pytest

from liger_export.convert import convert
from liger_export.errors import EnvironmentMismatchError, InputError, PackageError
from liger_export.package import read_manifest
from liger_export.precision import Precision
from liger_export.runtime import load, opening
from tests.tiny import edit_json, write_liger


@pytest.fixture(scope="module")
def fused(liger_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    package = tmp_path_factory.mktemp("fused") / "package"
    convert(liger_checkpoint, package, lowering="fused")
    return package


def test_a_stock_package_runs_on_the_cpu(package: Path) -> None:
    session = load(package)
    assert (session.lowering, session.device) == ("stock", "cpu")
    with pytest.raises(PackageError, match=r"no fused graph.*--lowering fused"):
        load(package, lowering="fused")


def test_without_the_operator_library_a_fused_package_runs_its_stock_graph(
    fused: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "library_path", lambda: None)
    assert load(fused).lowering == "stock"
    with pytest.raises(EnvironmentMismatchError, match="because no C\\+\\+ compiler was found"):
        load(fused, lowering="fused")


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2"])
def test_a_number_of_threads_that_makes_no_sense_is_refused(package: Path, threads: Any) -> None:
    with pytest.raises(InputError, match=r"threads is .*positive"):
        load(package, threads=threads)
    assert load(package, threads=1).lowering == "stock"


def test_errors_name_what_is_missing(fused: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"no device 'tpu'.*cpu, cuda"):
        load(fused, device="tpu")
    with pytest.raises(InputError, match=r"no lowering 'other'.*stock, fused"):
        load(fused, lowering="other")
    monkeypatch.setattr(opening.ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(EnvironmentMismatchError, match=r"does not support CUDA.*onnxruntime-gpu"):
        load(fused, device="cuda")
    monkeypatch.setattr(opening.ort, "get_available_providers", lambda: list(opening.PROVIDERS.values()))
    with pytest.raises(PackageError, match=r"kernels for the GPU.*--targets"):
        load(fused, device="cuda")
    assert load(fused).device == "cpu"


@pytest.mark.parametrize(
    "precision", [Precision(weights="bf16"), Precision(weights="int4", activation_precision="bf16")], ids=str
)
def test_a_bfloat16_package_is_converted_and_says_that_it_needs_a_gpu(
    precision: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 8, "num_key_value_heads": 4}
    checkpoint = write_liger(tmp_path / "liger", num_hidden_layers=1, **sizes)
    convert(checkpoint, tmp_path / "package", lowering="fused", precision=precision)
    needs_gpu = r"bfloat16.*NVIDIA GPU.*--targets.*fp16 instead of bf16"
    for options in ({}, {"device": "cpu"}, {"lowering": "stock"}, {"device": "cpu", "lowering": "fused"}):
        with pytest.raises(EnvironmentMismatchError, match=needs_gpu):
            load(tmp_path / "package", **options)
    monkeypatch.setattr(opening.ort, "get_available_providers", lambda: list(opening.PROVIDERS.values()))
    monkeypatch.setattr("liger_export.runtime.cuda.LIBRARY", "libcuda-absent.so")
    values = json.loads((tmp_path / "package" / "manifest.json").read_text())
    graphs, files = values["graphs"], values["files"]
    graphs["cuda"] = {**graphs["fused"], "targets": ["sm_90"]}  # as if converted with --targets
    files["model.cuda.onnx"] = files["model.fused.onnx"]
    edit_json(tmp_path / "package" / "manifest.json", graphs=graphs, files=files)
    for options in ({}, {"device": "cuda"}):
        with pytest.raises(EnvironmentMismatchError, match=needs_gpu):
            load(tmp_path / "package", **options)
    manifest = read_manifest(tmp_path / "package")
    monkeypatch.setattr(opening, "has_gpu", lambda: True)
    assert opening.choose_graph(manifest, None, None) == opening.Choice("cuda", "cuda")


def test_executors_of_one_model_capture_separate_graphs(fused: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A captured graph holds addresses: a fork that replayed its original's graph would write into its buffers."""
    graph_ids: list[int] = []

    def run_options(device: str, graph_id: int) -> None:
        graph_ids.append(graph_id)

    monkeypatch.setattr("liger_export.runtime.dynamic.run_options", run_options)
    load(fused).fork()
    assert len(graph_ids) == len(set(graph_ids)) == 4
