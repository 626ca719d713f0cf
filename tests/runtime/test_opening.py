"""The graph and device that ``load`` chooses, and its errors."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import onnx
import pytest

from liger_export.config import LigerConfig
from liger_export.convert import convert
from liger_export.errors import EnvironmentMismatchError, InputError, PackageError
from liger_export.inspection import inspect
from liger_export.package import MODEL_FILES, read_manifest
from liger_export.precision import Precision
from liger_export.runtime import load, opening
from liger_export.state import bytes_per_session, state_table
from tests.plugins.sessions import needs_library
from tests.tiny import edit_json, reseal, write_liger


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


@pytest.mark.parametrize(
    ("lowering", "option"), [("wasm", "--targets web"), ("webgpu", "--targets web"), ("standard", "--opset 27")]
)
def test_a_graph_for_another_runtime_runs_on_the_cpu_if_the_package_has_it(
    package: Path, lowering: str, option: str
) -> None:
    with pytest.raises(PackageError, match=f"no {lowering} graph.*{option}"):
        load(package, lowering=lowering)
    manifest = read_manifest(package)
    manifest = replace(manifest, graphs={**manifest.graphs, lowering: manifest.graphs["stock"]})
    assert opening.choose_graph(manifest, lowering, None) == opening.Choice(lowering, "cpu")
    with pytest.raises(InputError, match="runs on the CPU here"):
        opening.choose_graph(manifest, lowering, "cuda")


def test_without_the_operator_library_a_fused_package_runs_its_stock_graph(
    fused: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "library_path", lambda: None)
    assert load(fused).lowering == "stock"
    with pytest.raises(EnvironmentMismatchError, match="because no C\\+\\+ compiler was found"):
        load(fused, lowering="fused")


@needs_library
def test_an_operator_of_a_newer_version_is_refused_by_its_name(fused: Path, tmp_path: Path) -> None:
    package = Path(shutil.copytree(fused, tmp_path / "package"))
    graph = onnx.load(package / MODEL_FILES["fused"], load_external_data=False)
    next(node for node in graph.graph.node if node.op_type == "Attention").op_type = "NewerAttention"
    (package / MODEL_FILES["fused"]).write_bytes(graph.SerializeToString())
    reseal(package)
    with pytest.raises(PackageError, match=r"liger:NewerAttention.*upgrade it, or use the lowering stock"):
        load(package)
    assert load(package, lowering="stock").lowering == "stock"


@pytest.mark.parametrize("threads", [0, -1, 1025, 10**12, 1.5, "2"])
def test_a_number_of_threads_that_makes_no_sense_is_refused(package: Path, threads: Any) -> None:
    with pytest.raises(InputError, match=r"threads is .*from 1 to 1024"):
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
def test_a_bfloat16_package_opens_with_the_fused_graph_only(
    precision: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 8, "num_key_value_heads": 4}
    checkpoint = write_liger(tmp_path / "liger", num_hidden_layers=1, **sizes)
    convert(checkpoint, tmp_path / "package", lowering="fused", precision=precision)
    with pytest.raises(EnvironmentMismatchError, match=r"bfloat16.*--lowering fused.*fp16 instead of bf16"):
        load(tmp_path / "package", lowering="stock")
    for options in ({}, {"device": "cpu"}, {"lowering": "fused"}):
        choice = opening.choose_graph(
            read_manifest(tmp_path / "package"), **{"lowering": None, "device": None, **options}
        )
        assert choice == opening.Choice("fused", "cpu")
    monkeypatch.setattr(opening.ort, "get_available_providers", lambda: list(opening.PROVIDERS.values()))
    monkeypatch.setattr("liger_export.runtime.cuda.LIBRARY", "libcuda-absent.so")
    values = json.loads((tmp_path / "package" / "manifest.json").read_text())
    graphs, files = values["graphs"], values["files"]
    graphs["cuda"] = {**graphs["fused"], "targets": ["sm_90"]}  # as if converted with --targets
    files["model.cuda.onnx"] = files["model.fused.onnx"]
    edit_json(tmp_path / "package" / "manifest.json", graphs=graphs, files=files)
    for options in ({}, {"device": "cuda"}):
        with pytest.raises(EnvironmentMismatchError, match=r"on a GPU, and there is none.*device='cpu'"):
            load(tmp_path / "package", **options)
    manifest = read_manifest(tmp_path / "package")
    monkeypatch.setattr(opening, "has_gpu", lambda: True)
    assert opening.choose_graph(manifest, None, None) == opening.Choice("cuda", "cuda")


def test_executors_of_one_model_capture_separate_graphs(fused: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A captured graph holds addresses: a fork that replayed its original's graph would write into its buffers."""
    graph_ids: list[int] = []

    def run_options(device: str, graph_id: int) -> None:
        graph_ids.append(graph_id)

    monkeypatch.setattr("liger_export.runtime.calls.run_options", run_options)
    load(fused).fork()
    assert len(graph_ids) == len(set(graph_ids)) == 4


@pytest.mark.parametrize("directory", [None, 5, b"package"])
def test_a_directory_that_is_no_path_is_refused(directory: Any) -> None:
    with pytest.raises(InputError, match="is not a directory"):
        load(directory)


def test_arguments_of_another_type_are_refused(package: Path) -> None:
    session = load(package)
    for tokens in (None, 5, [[1], [1, 2]], [1.5], ["a"], [None], [2**70]):
        for call in (session.prefill, session.all_logits, session.feed, session.generate):
            with pytest.raises(InputError, match="is not a sequence of token ids"):
                call(cast(Any, tokens))
    for options in ({"stop": None}, {"stop": 5}, {"stop": [5]}, {"sampling": "greedy"}, {"max_new_tokens": 1.5}):
        with pytest.raises(InputError):
            session.generate("a", **cast(Any, options))
    assert session.position == 0


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        *(("config", value) for value in (None, [], {"model_type": []}, 5)),
        *(("graphs", value) for value in (None, [], {"stock": None}, {"other": {}})),
        *(("files", value) for value in (None, [], {"model.onnx": None}, {"model.onnx": {"bytes": -1}})),
        *(("precision", value) for value in (None, [], {"weights": []})),
        *(("state", value) for value in (None, {}, {"tensors": None})),
        *(("adapters", value) for value in (None, 5, [None])),
        *(("source", value) for value in ([], {"name": "a"})),
        *(("memory", value) for value in (5, {"from_token": None})),
        *(("calibration", value) for value in (5, {"tokens": []})),
        ("engine", {}),
    ],
)
def test_a_manifest_with_another_entry_is_an_error_of_ours(package_copy: Path, entry: str, value: object) -> None:
    edit_json(package_copy / "manifest.json", **{entry: value})
    with pytest.raises(PackageError, match=r"manifest\.json|package"):
        inspect(package_copy)
    if entry not in ("memory", "calibration"):  # which only inspect shows
        with pytest.raises(PackageError, match=r"manifest\.json|package"):
            load(package_copy)


@pytest.mark.parametrize(("field", "value"), [("vocab_size", 8), ("window_size", 4)])
def test_a_config_of_another_graph_is_refused(package_copy: Path, field: str, value: int) -> None:
    values = json.loads((package_copy / "manifest.json").read_text())
    config = {**values["config"], field: value}
    table = state_table(LigerConfig.from_dict(config))
    state = {**values["state"], "bytes_per_session": bytes_per_session(table)}
    edit_json(package_copy / "manifest.json", config=config, state=state)
    with pytest.raises(PackageError, match="does not describe its graph"):
        load(package_copy)
