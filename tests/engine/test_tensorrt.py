"""The whole TensorRT backend, against a stand-in that runs NVIDIA's own Python sources (tests/fake_tensorrt.py).

Builds run in a process of their own: kernels are compiled, and here Triton may be an interpreter.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from liger_export.convert import convert
from liger_export.engine import build
from liger_export.engine.build import EngineSettings, build_engine
from liger_export.engine.check import refuse_foreign_operators
from liger_export.engine.network import BuiltGraph, Library
from liger_export.engine.tensorrt import TensorRT
from liger_export.errors import EngineError, EnvironmentMismatchError
from liger_export.linearize import LinearizeSettings
from liger_export.package import read_manifest
from liger_export.plugins.tensorrt import tactics
from liger_export.plugins.tensorrt.kernel import ARGUMENTS
from liger_export.precision import Precision
from liger_export.runtime import load
from liger_export.runtime.cuda import Cuda
from tests.fakes import tensorrt as fake_tensorrt
from tests.fakes.tensorrt import needs_bindings
from tests.plugins.plugin_module import ATTRIBUTES, FakePlugin
from tests.tiny import Shape, load_model, write_liger

TENSORRT = EngineSettings(backend="tensorrt", chunk=32, check_tokens=72)
TOKENS = [int(token) for token in np.random.default_rng(0).integers(1, 260, 300)]
WIDE = Shape(4, 2, head_dim=32, window=16)
OPERATORS = {"gla": "GLAAttention", "hgrn2": "HGRN2Attention"}

SCRIPT = """
import sys
from pathlib import Path
from tests.fakes import tensorrt as fake_tensorrt
fake_tensorrt.install()
from liger_export.engine.build import EngineSettings, build_engine
from liger_export.runtime.cuda import Cuda
Cuda.open = lambda: Cuda(driver=None, capability="sm86")
package, output, activations, *names = sys.argv[1:]
settings = EngineSettings(backend="tensorrt", activations=activations, chunk=32, check_tokens=72)
for name in names:
    build_engine(Path(package), Path(output) / name, settings)
"""


def package_of(folder: Path, mixer: str, shape: Shape = WIDE, **options: Any) -> Path:
    """A tiny hybrid: two layers of the mixer around one that keeps softmax."""
    settings = LinearizeSettings(
        mixer=mixer, num_slots=4 if mixer == "gsa" else None, keep_softmax_every=2, softmax_window=20
    )
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 3}
    write_liger(folder / "liger", shape, settings=settings, **sizes)
    convert(folder / "liger", folder / "package", **options)
    return folder / "package"


def build_elsewhere(package: Path, output: Path, activations: str, *names: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(package), str(output), activations, *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built twice by one process: plugins can be registered once."""
    folder = tmp_path_factory.mktemp("tensorrt")
    build_elsewhere(package_of(folder, "gla", precision=Precision(weights="int4")), folder, "fp16", "first", "engine")
    return folder / "engine"


def told(engine: Path, name: str) -> dict[str, Any]:
    """What the stand-in's builder was told."""
    content: dict[str, Any] = json.loads((engine / f"{name}.engine").read_text())
    return content


def assert_kernels(engine: Path) -> None:
    step, prefill = told(engine, "step"), told(engine, "prefill")
    assert step["flags"] == ["PREFER_AOT_PYTHON_PLUGINS", "STRONGLY_TYPED"]
    assert (step["builder_flags"], prefill["kernels"]) == ([], {})
    assert list(step["aliases"].values()) == 2 * [[-1, 6, -1, -1]]
    for kernels in step["kernels"].values():
        assert [(each["grid_x"], each["grid_y"], each["grid_z"]) for each in kernels] == [(2, 2, 1), (1, 2, 1)]
        assert len(kernels) == len(tactics(WIDE.head_dim))
        for each in kernels:
            assert (each["scalars"], each["block_y"], each["block_z"]) == (0, 1, 1)
            assert ".target sm_86" in each["ptx"]
            declared = re.search(rf"\.visible \.entry {each['name']}\((.*?)\)", each["ptx"], re.DOTALL)
            assert declared is not None
            assert declared[1].count(".param") == ARGUMENTS


@needs_bindings
def test_attention_becomes_plugins_whose_kernels_are_in_the_engine(engine: Path) -> None:
    manifest = read_manifest(engine)
    manifest.check_files(engine)
    record = manifest.engine
    assert record is not None
    assert record.check is not None
    assert (record.targets, record.plugins) == (["sm86"], ["GLAAttention"])
    assert record.precisions["state, recurrence, softmax, rotary"] == "float32, TF32 in the plugin's products"
    names = [f"past_key_values.{layer}.recurrent_state" for layer in (0, 2)]
    assert manifest.graphs["portable"].in_place == names
    assert_kernels(engine)


@needs_bindings
def test_hgrn2_in_bfloat16_does_too(tmp_path: Path) -> None:
    build_elsewhere(package_of(tmp_path, "hgrn2"), tmp_path, "bf16", "engine")
    assert_kernels(tmp_path / "engine")


@needs_bindings
def test_layers_are_listed_and_no_folder_is_named(engine: Path) -> None:
    layers = json.loads((engine / "step.layers.json").read_text())
    plugins = [layer for layer in layers["network"] if layer["type"] == "PLUGIN_V3"]
    assert [layer["outputs"] for layer in plugins] == 2 * [
        ["float16 [1, 1, 128]", "float32 [1, 2, 32, 32]", "float16 [1, 2, 16, 32]", "float16 [1, 2, 16, 32]"]
    ]
    assert layers["engine"] == {"Layers": [], "format": "JSON"}
    assert str(engine.parent) not in (engine / "build.log").read_text()


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> dict[str, onnx.GraphProto]:
    """The graphs that the library would be given, by name, their signatures checked; nothing is built."""
    graphs: dict[str, onnx.GraphProto] = {}

    def build_graph(
        library: Library, graph_file: Path, engine_file: Path, targets: list[str], signature: Any, log: list[str]
    ) -> BuiltGraph:
        model = onnx.load(graph_file, load_external_data=False)
        assert not model.functions
        for values, expected in zip((model.graph.input, model.graph.output), signature, strict=True):
            assert {value.name: shape_and_dtype(value) for value in values} == expected
        assert refuse_foreign_operators(graph_file, library.plugins)
        graphs[graph_file.stem] = model.graph
        engine_file.write_text("{}")
        return BuiltGraph(0.0, 2, {})

    monkeypatch.setattr(Library, "build_graph", build_graph)
    return graphs


@pytest.fixture
def on_sm86(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """TensorRT beside a GPU, its plugins registered with a stand-in."""
    module = fake_tensorrt.fake_tensorrt()
    monkeypatch.setattr(module, "plugin", FakePlugin(), raising=False)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(Cuda, "open", lambda: Cuda(driver=None, capability="sm86"))
    monkeypatch.setattr("liger_export.engine.tensorrt.fitting_tactics", lambda *_: [1])
    return module


def shape_and_dtype(value: onnx.ValueInfoProto) -> tuple[tuple[int, ...], str]:
    kind = value.type.tensor_type
    dtype = {1: "float32", 7: "int64", 10: "float16", 16: "bfloat16"}[kind.elem_type]
    return tuple(size.dim_value for size in kind.shape.dim), dtype


@pytest.mark.usefixtures("on_sm86")
@pytest.mark.parametrize("mixer", OPERATORS)
def test_the_parsed_graph_holds_one_plugin_node_a_layer(
    mixer: str, tmp_path: Path, parsed: dict[str, onnx.GraphProto]
) -> None:
    build_engine(package_of(tmp_path, mixer), tmp_path / "engine", replace(TENSORRT, check_tokens=0))
    assert {node.domain for node in parsed["prefill"].node} == {""}
    fused = [node for node in parsed["step"].node if node.domain != ""]
    assert [(node.domain, node.op_type) for node in fused] == 2 * [("liger", OPERATORS[mixer])]
    for layer, node in zip((0, 2), fused, strict=True):
        attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        assert list(attributes) == [*ATTRIBUTES[mixer], "plugin_namespace", "aot"]
        assert (attributes["plugin_namespace"], attributes["aot"]) == (b"liger", 1)
        states = [f"past_key_values.{layer}.{name}" for name in ("recurrent_state", "key", "value")]
        assert list(node.input[5:]) == ["position_ids", *states]
        assert list(node.output[1:]) == [name.replace("past_key_values", "present") for name in states]


@pytest.mark.parametrize(("mixer", "shape"), [("gsa", WIDE), ("lolcats", WIDE), ("gla", Shape(head_dim=16))])
def test_attention_without_a_kernel_becomes_native_layers(
    mixer: str, shape: Shape, tmp_path: Path, parsed: dict[str, onnx.GraphProto], on_sm86: ModuleType
) -> None:
    manifest = build_engine(package_of(tmp_path, mixer, shape), tmp_path / "engine", replace(TENSORRT, check_tokens=0))
    assert {node.domain for node in parsed["step"].node} == {""}
    assert manifest.engine is not None
    assert manifest.engine.plugins == []
    assert manifest.graphs["portable"].in_place == []
    assert manifest.engine.precisions["state, recurrence, softmax, rotary"] == "float32, no TF32"


def test_attention_that_the_gpu_has_no_room_for_becomes_native_layers(
    package: Path, on_sm86: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(read_manifest(package).model_config, head_dim=256, window_size=256)
    assert TensorRT.open().plugins_for(config, "float32", ["sm86"]) == ["GLAAttention"]
    monkeypatch.setattr("liger_export.engine.tensorrt.fitting_tactics", lambda *_: [])
    assert TensorRT.open().plugins_for(config, "float32", ["sm86"]) == []


@pytest.mark.parametrize("mixer", OPERATORS)
def test_the_graph_with_plugin_nodes_computes_what_pytorch_computes(
    mixer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On ONNX Runtime, which runs each plugin's node by its body; past the windows' edges, after prefill and alone."""
    package = package_of(tmp_path, mixer)
    monkeypatch.setattr(build, "_plugins", lambda *_: [OPERATORS[mixer]])
    settings = EngineSettings(backend="onnx", activations="fp32", chunk=32, check_tokens=0)
    build_engine(package, tmp_path / "engine", settings)
    step = onnx.load(tmp_path / "engine" / "step.onnx", load_external_data=False)
    assert [node.op_type for node in step.graph.node if node.domain == "liger"] == 2 * [OPERATORS[mixer]]
    with torch.no_grad():
        expected = load_model(tmp_path / "liger")(torch.tensor([TOKENS])).logits[0].numpy()
    for prefilled in (0, 64):
        session = load(tmp_path / "engine")
        if prefilled:
            session.prefill(TOKENS[:prefilled])
        stepped = np.stack([session.step(token) for token in TOKENS[prefilled:]])
        assert np.linalg.norm(stepped - expected[prefilled:]) <= 1e-5 * np.linalg.norm(expected[prefilled:])
        np.testing.assert_array_equal(stepped.argmax(-1), expected[prefilled:].argmax(-1))


@pytest.mark.usefixtures("on_sm86")
def test_only_the_gpu_at_hand_is_built_for(tmp_path: Path) -> None:
    backend = TensorRT.open()
    assert backend.require_targets([]) == backend.require_targets(["86", "sm_86"]) == ["sm86"]
    with pytest.raises(EngineError, match=r"sm86 here, not for sm89.*tensorrt-rtx"):
        build_engine(tmp_path / "absent", tmp_path / "engine", replace(TENSORRT, targets=("86", "89")))
    assert list(tmp_path.iterdir()) == []


def test_a_gpu_without_a_kernel_is_refused(on_sm86: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cuda, "open", lambda: Cuda(driver=None, capability="sm75"))
    with pytest.raises(EngineError, match=r"no attention kernel for sm75.*sm90"):
        TensorRT.open().require_targets([])


def test_a_missing_gpu_is_said_so(on_sm86: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "tensorrt", on_sm86)
    monkeypatch.setattr("liger_export.runtime.cuda.LIBRARY", "libcuda-absent.so")
    with pytest.raises(EnvironmentMismatchError, match=r"builds on a GPU.*no NVIDIA driver.*tensorrt-rtx"):
        TensorRT.open().require_targets([])


def test_a_missing_library_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EnvironmentMismatchError, match=r"cannot be loaded.*pypi\.nvidia\.com.*\[tensorrt\]"):
        build_engine(tmp_path / "absent", tmp_path / "engine", TENSORRT)


@pytest.mark.parametrize("version", ["8.6.1", "10.9.0.34", "10.12.0.36"])
def test_a_library_that_is_too_old_is_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt.fake_tensorrt(version))
    with pytest.raises(EnvironmentMismatchError, match=rf"TensorRT {version} is installed; .* 10\.13 or newer"):
        TensorRT.open()


def test_a_library_that_this_numpy_breaks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt.fake_tensorrt("10.16.1.11"))
    monkeypatch.setattr("numpy.__version__", "2.4.0")
    with pytest.raises(EnvironmentMismatchError, match=r"10\.16\.1\.11 cannot read.*numpy 2\.4\.0.*numpy<2\.4"):
        TensorRT.open()
    monkeypatch.setattr("numpy.__version__", "2.3.5")
    assert TensorRT.open().library.version == "10.16.1.11"
