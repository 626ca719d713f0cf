"""Engines built without a GPU: sound builds, and settings, graphs and outputs that are refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from liger_export.config import MIXERS
from liger_export.convert import convert
from liger_export.engine.build import EngineSettings, build_engine
from liger_export.engine.graph_io import expected_io
from liger_export.engine.network import DTYPES
from liger_export.engine.tensorrt_rtx import TensorRTRTX
from liger_export.engine.weights import PackagedWeights
from liger_export.errors import BoundError, EngineError, InputError, LigerExportError, NotFiniteError, OutputError
from liger_export.export import ONNX_OPSET
from liger_export.files import sha256_file
from liger_export.linearize import LinearizeSettings, linearize
from liger_export.package import Manifest, read_manifest
from liger_export.package.engines import EngineRecord
from liger_export.precision import Precision
from tests.engine.conftest import Hybrid
from tests.tiny import edit_json, write_overflowing

TARGETS = ("86", "89", "120")
EXAMPLE = Path(__file__).parents[2] / "examples" / "pycode-7m"
RTX = EngineSettings(targets=TARGETS, chunk=32, check_tokens=72)
PORTABLE = EngineSettings(backend="onnx", chunk=0, check_tokens=0)


def record_of(manifest: Manifest) -> EngineRecord:
    assert manifest.engine is not None
    return manifest.engine


def layers_of(engine: Path, name: str) -> list[dict[str, str]]:
    layers: list[dict[str, str]] = json.loads((engine / f"{name}.layers.json").read_text())["network"]
    return layers


def assert_built(engine: Path, package: Path, settings: EngineSettings) -> Manifest:
    manifest = read_manifest(engine)
    manifest.check_files(engine)
    assert manifest.graphs["portable"].opsets == {"ai.onnx": ONNX_OPSET}
    record = record_of(manifest)
    assert record.package_sha256 == sha256_file(package / "manifest.json")
    assert record.targets == [f"sm{target}" for target in settings.targets]
    assert record.check is not None
    for name in ("step", "prefill"):
        assert (engine / f"{name}.engine").stat().st_size == record.graphs[name]["bytes"]
        products = [layer for layer in layers_of(engine, name) if layer["type"] == "MATRIX_MULTIPLY"]
        assert {output.split()[0] for layer in products for output in layer["outputs"]} == {
            manifest.activations, "float32",
        }  # fmt: skip
    assert {entry.dtype for entry in manifest.state if entry.name in ("key", "value")} == {manifest.activations}
    assert {entry.dtype for entry in manifest.state if entry.name not in ("key", "value")} == {"float32"}
    log = (engine / "build.log").read_text()
    assert str(engine.parent) not in log
    assert "liger" not in log.replace("liger-export", "")
    return manifest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mixer", "weights"), [("gla", "int4"), ("gsa", "fp32"), ("hgrn2", "fp32"), ("lolcats", "int8")]
)
def test_hybrids_build_for_three_architectures(mixer: str, weights: str, hybrid: Hybrid, tmp_path: Path) -> None:
    package = hybrid(mixer, precision=Precision(weights=weights))
    build_engine(package, tmp_path / "engine", RTX)
    manifest = assert_built(tmp_path / "engine", package, RTX)
    assert manifest.activations == "float16"
    dequantized = sum(layer["type"] == "DEQUANTIZE" for layer in layers_of(tmp_path / "engine", "step"))
    assert dequantized == (22 if weights.startswith("int") else 0)  # 7 matrices per layer, and the output layer's


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_symmetric_integers_build(weights: str, hybrid: Hybrid, tmp_path: Path) -> None:
    """Symmetric scales may be negative, which the parser refuses for 8-bit integers. In float32 this is exact."""
    package = hybrid("gla", precision=Precision(weights=weights, symmetric=True))
    settings = replace(RTX, targets=("86",), activations="fp32")
    build_engine(package, tmp_path / "engine", settings)
    check = record_of(assert_built(tmp_path / "engine", package, settings)).check
    assert check is not None
    assert {each["bound"] for each in check["checks"]} == {1e-5}


@pytest.mark.slow
def test_the_shipped_model_builds(tmp_path: Path) -> None:
    package = tmp_path / "package"
    linearize(str(EXAMPLE / "base"), tmp_path / "liger")
    convert(tmp_path / "liger", package, adapters=(EXAMPLE / "adapter",), precision=Precision(weights="int4"))
    build_engine(package, tmp_path / "engine", RTX)
    assert_built(tmp_path / "engine", package, RTX)


@pytest.fixture(scope="session")
def first_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base of the shipped model, cut to its first two layers."""
    directory = Path(shutil.copytree(EXAMPLE / "base", tmp_path_factory.mktemp("cut") / "base"))
    edit_json(directory / "config.json", num_hidden_layers=2)
    tensors = load_file(directory / "model.safetensors")
    later = tuple(f"model.layers.{layer}." for layer in range(2, 8))
    kept = {name: value for name, value in tensors.items() if not name.startswith(later)}
    save_file(kept, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["fp16", "int4"])
@pytest.mark.parametrize("mixer", MIXERS)
def test_trained_layers_of_every_mixer_build(mixer: str, weights: str, first_layers: Path, tmp_path: Path) -> None:
    package = tmp_path / "package"
    linearize(str(first_layers), tmp_path / "liger", LinearizeSettings(mixer=mixer))
    convert(tmp_path / "liger", package, precision=Precision(weights=weights))
    build_engine(package, tmp_path / "engine", RTX)
    assert_built(tmp_path / "engine", package, RTX)


@pytest.mark.slow
def test_bfloat16_graphs_are_compared_in_float32(package: Path, tmp_path: Path) -> None:
    settings = EngineSettings(targets=("89",), activations="bf16", chunk=32, check_tokens=24)
    build_engine(package, tmp_path / "engine", settings)
    check = record_of(assert_built(tmp_path / "engine", package, settings)).check
    assert check is not None
    assert check["activations"] == "float32"
    assert {each["bound"] for each in check["checks"]} == {1e-5}


@pytest.mark.slow
@pytest.mark.parametrize(
    "precision", [Precision(weights="bf16"), Precision(weights="int4", activation_precision="bf16")], ids=str
)
def test_a_bfloat16_package_builds_on_a_cpu(precision: Precision, hybrid: Hybrid, tmp_path: Path) -> None:
    settings = EngineSettings(backend="onnx", activations="fp32", chunk=32, check_tokens=72)
    record = record_of(build_engine(hybrid("gla", precision=precision), tmp_path / "engine", settings))
    assert record.check is not None
    assert "activations" not in record.precisions["weights of products"]
    checks = {check["name"]: check for check in record.check["checks"]}
    assert checks["prefill: mean KL (nats)"]["bound"] == 5e-3
    assert 1e-3 < checks["final state: relative L2"]["value"] < 5e-2


@pytest.mark.slow
def test_prefill_is_optional(package: Path, tmp_path: Path) -> None:
    settings = EngineSettings(targets=("80", "121"), chunk=0, check_tokens=24)
    record = record_of(build_engine(package, tmp_path / "engine", settings))
    assert list(record.graphs) == ["step"]
    assert record.check is not None
    assert [check["name"].split(":")[0] for check in record.check["checks"]] == ["single steps", "final state"]
    assert not (tmp_path / "engine" / "prefill.engine").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (EngineSettings(targets=("86", "90")), ["sm90", ": 80, 86, 89, 120, 121"]),
        (EngineSettings(targets=("86", "75")), ["sm75 on a machine without a GPU", ": 80, 86, 89, 120, 121"]),
        (EngineSettings(), ["--sm", ": 80, 86, 89, 120, 121"]),
        (EngineSettings(backend="tvm", targets=("86",)), ["tvm", "tensorrt-rtx"]),
        (EngineSettings(activations="fp8", targets=("86",)), ["fp8", "bf16"]),
        (EngineSettings(chunk=40, targets=("86",)), ["40", "multiple of 16"]),
        (EngineSettings(backend="onnx", targets=("86",)), ["--sm"]),
        (EngineSettings(backend="onnx", activations="bf16"), ["bfloat16", "fp16"]),
    ],
)
def test_unsupported_settings_are_refused_before_any_work(
    settings: EngineSettings, words: list[str], tmp_path: Path
) -> None:
    with pytest.raises((EngineError, InputError)) as refused:
        build_engine(tmp_path / "absent", tmp_path / "engine", settings)
    for word in words:
        assert word in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_build_leaves_nothing(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DTYPES, "INT64", "int32")
    settings = EngineSettings(targets=("86",), check_tokens=0)
    with pytest.raises(EngineError, match="input_ids is int32"):
        build_engine(package, tmp_path / "engine", settings)
    assert list(tmp_path.iterdir()) == []


def test_graphs_with_other_weights_miss_the_bound(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = PackagedWeights.rows

    def changed(self: PackagedWeights, name: str, start: int, stop: int) -> object:
        return original(self, name, start, stop) * (1.01 if "o_proj" in name else 1)

    monkeypatch.setattr(PackagedWeights, "rows", changed)
    settings = EngineSettings(backend="onnx", activations="fp32", chunk=32, check_tokens=24)
    with pytest.raises(BoundError, match="miss a bound"):
        build_engine(package, tmp_path / "engine", settings)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_activations_that_are_too_narrow_are_an_error_that_names_the_layer(tmp_path: Path) -> None:
    checkpoint = write_overflowing(tmp_path / "liger", "model.layers.0.self_attn.v_proj")
    convert(checkpoint, tmp_path / "package")
    settings = EngineSettings(backend="onnx", activations="fp16", chunk=32, check_tokens=24)
    with pytest.raises(NotFiniteError, match=r"layer 0 .*fp16.*Build the engine again .*--activations fp32"):
        build_engine(tmp_path / "package", tmp_path / "engine", settings)
    assert not (tmp_path / "engine").exists()


def test_inputs_and_existing_outputs_are_kept(package: Path, tmp_path: Path) -> None:
    settings = replace(PORTABLE, chunk=16)
    engine = tmp_path / "engine"
    assert record_of(build_engine(package, engine, settings)).check is None
    with pytest.raises(OutputError, match="exists"):
        build_engine(package, engine, settings)
    with pytest.raises(LigerExportError, match="engine directory"):
        build_engine(engine, tmp_path / "other", settings)
    build_engine(package, engine, settings, overwrite=True)


def test_a_full_disk_is_one_error_and_prints_nothing(
    package: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    graphs = tmp_path / "graphs"
    build_engine(package, graphs, PORTABLE)
    expected = expected_io(read_manifest(graphs), 1)
    with pytest.raises(OSError, match="No space left"):
        TensorRTRTX.open().library.build_graph(graphs / "step.onnx", Path("/dev/full"), ["sm86"], expected, [])
    assert "Exception" not in "".join(capfd.readouterr())
