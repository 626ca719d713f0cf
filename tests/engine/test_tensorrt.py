"""The TensorRT backend, with a stand-in for TensorRT that runs NVIDIA's own Python sources (tests/fakes/tensorrt).

Kernels are compiled in a separate process, because Triton may be set to its interpreter in this one.
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

from liger_export.engine import build
from liger_export.engine.build import EngineSettings, build_engine
from liger_export.engine.graph_io import GraphIO, TensorSpec
from liger_export.engine.graphs import refuse_foreign_operators
from liger_export.engine.network import BuiltGraph, Library
from liger_export.engine.tensorrt import TensorRT
from liger_export.errors import EngineError, EnvironmentMismatchError
from liger_export.package import read_manifest
from liger_export.parity.compare import relative_l2
from liger_export.plugins.tensorrt import tactics
from liger_export.plugins.tensorrt.kernel import ARGUMENTS
from liger_export.precision import Precision
from liger_export.runtime import load
from liger_export.runtime.cuda import Cuda
from tests.cells import slow_except
from tests.engine.conftest import WIDE, Hybrid
from tests.fakes.tensorrt import fake_tensorrt, needs_bindings
from tests.fakes.tensorrt_plugin import ATTRIBUTES, FakePlugin
from tests.tiny import Shape, load_model

TENSORRT = EngineSettings(backend="tensorrt", chunk=32, check_tokens=72)
TOKENS = [int(token) for token in np.random.default_rng(0).integers(1, 260, 300)]
OPERATORS = {"gla": "GLAAttention", "hgrn2": "HGRN2Attention"}

SCRIPT = """
import sys
from pathlib import Path
from tests.fakes.tensorrt import install
install()
from liger_export.engine.build import EngineSettings, build_engine
from liger_export.runtime.cuda import Cuda
Cuda.open = lambda: Cuda(driver=None, capability="sm86")
for build in sys.argv[1:]:
    package, engine, activations = build.split(",")
    settings = EngineSettings(backend="tensorrt", activations=activations, chunk=32, check_tokens=72)
    build_engine(Path(package), Path(engine), settings)
"""


@pytest.fixture(scope="module")
def engines(hybrid: Hybrid, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Engine directories by mixer. One process builds all of them, although it can register each plugin only once."""
    folder = tmp_path_factory.mktemp("tensorrt")
    found = {mixer: folder / mixer for mixer in OPERATORS}
    builds = [
        f"{hybrid('gla', precision=Precision(weights='int4'))},{found['gla']},fp16",
        f"{hybrid('hgrn2')},{found['hgrn2']},bf16",
    ]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, *builds]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return found


def builder_inputs(engine: Path, name: str) -> dict[str, Any]:
    """The engine file, in which the stand-in's builder lists its inputs."""
    content: dict[str, Any] = json.loads((engine / f"{name}.engine").read_text())
    return content


@needs_bindings
@pytest.mark.slow
@pytest.mark.parametrize("mixer", OPERATORS)
def test_kernels_are_in_the_engine(mixer: str, engines: dict[str, Path]) -> None:
    """GLA in float16 and HGRN2 in bfloat16."""
    step, prefill = builder_inputs(engines[mixer], "step"), builder_inputs(engines[mixer], "prefill")
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
@pytest.mark.slow
def test_attention_becomes_plugins(engines: dict[str, Path]) -> None:
    manifest = read_manifest(engines["gla"])
    manifest.check_files(engines["gla"])
    record = manifest.engine
    assert record is not None
    assert record.check is not None
    assert (record.targets, record.plugins) == (["sm86"], ["GLAAttention"])
    assert record.precisions["state, recurrence, softmax, rotary"] == "float32, TF32 in the plugin's products"
    names = [f"past_key_values.{layer}.recurrent_state" for layer in (0, 2)]
    assert manifest.graphs["portable"].in_place == names


@needs_bindings
@pytest.mark.slow
def test_layers_are_listed_and_the_log_names_no_folder(engines: dict[str, Path]) -> None:
    engine = engines["gla"]
    layers = json.loads((engine / "step.layers.json").read_text())
    plugins = [layer for layer in layers["network"] if layer["type"] == "PLUGIN_V3"]
    assert [layer["outputs"] for layer in plugins] == 2 * [
        ["float16 [1, 1, 128]", "float32 [1, 2, 32, 32]", "float16 [1, 2, 16, 32]", "float16 [1, 2, 16, 32]"]
    ]
    assert layers["engine"] == {"Layers": [], "format": "JSON"}
    assert str(engine.parent) not in (engine / "build.log").read_text()


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> dict[str, onnx.GraphProto]:
    """Graphs that the library is asked to build, by name, with their inputs and outputs checked. Nothing is built."""
    graphs: dict[str, onnx.GraphProto] = {}

    def build_graph(
        library: Library, graph_file: Path, engine_file: Path, targets: list[str], expected: GraphIO, log: list[str]
    ) -> BuiltGraph:
        model = onnx.load(graph_file, load_external_data=False)
        assert not model.functions
        for values, specs in zip((model.graph.input, model.graph.output), expected, strict=True):
            assert {value.name: spec_of(value) for value in values} == specs
        assert refuse_foreign_operators(graph_file, library.plugins)
        graphs[graph_file.stem] = model.graph
        engine_file.write_text("{}")
        return BuiltGraph(0.0, 2, {})

    monkeypatch.setattr(Library, "build_graph", build_graph)
    return graphs


@pytest.fixture
def on_sm86(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """TensorRT on a machine with a GPU; plugins are registered with a stand-in."""
    module = fake_tensorrt()
    monkeypatch.setattr(module, "plugin", FakePlugin(), raising=False)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(Cuda, "open", lambda: Cuda(driver=None, capability="sm86"))
    monkeypatch.setattr("liger_export.engine.tensorrt.fitting_tactics", lambda *_: [1])
    return module


def spec_of(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    dtype = {1: "float32", 7: "int64", 10: "float16", 16: "bfloat16"}[kind.elem_type]
    return tuple(size.dim_value for size in kind.shape.dim), dtype


@pytest.mark.slow
@pytest.mark.usefixtures("on_sm86")
@pytest.mark.parametrize("mixer", slow_except(["gla"], OPERATORS))
def test_the_parsed_graph_has_one_plugin_node_per_layer(
    mixer: str, hybrid: Hybrid, tmp_path: Path, parsed: dict[str, onnx.GraphProto]
) -> None:
    build_engine(hybrid(mixer), tmp_path / "engine", replace(TENSORRT, check_tokens=0))
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


@pytest.mark.usefixtures("on_sm86")
@pytest.mark.slow
@pytest.mark.parametrize(("mixer", "shape"), [("gsa", WIDE), ("lolcats", WIDE), ("gla", Shape(head_dim=16))])
def test_attention_without_a_kernel_becomes_native_layers(
    mixer: str, shape: Shape, hybrid: Hybrid, tmp_path: Path, parsed: dict[str, onnx.GraphProto]
) -> None:
    package = hybrid(mixer, shape, Precision(weights="fp16"))  # traced once: the engine's activations are float16 too
    manifest = build_engine(package, tmp_path / "engine", replace(TENSORRT, check_tokens=0))
    assert {node.domain for node in parsed["step"].node} == {""}
    assert manifest.engine is not None
    assert manifest.engine.plugins == []
    assert manifest.graphs["portable"].in_place == []
    assert manifest.engine.precisions["state, recurrence, softmax, rotary"] == "float32, no TF32"


@pytest.mark.usefixtures("on_sm86")
def test_attention_that_exceeds_shared_memory_becomes_native_layers(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(read_manifest(package).model_config, head_dim=256, window_size=256)
    assert TensorRT.open().plugins_for(config, "float32", ["sm86"]) == ["GLAAttention"]
    monkeypatch.setattr("liger_export.engine.tensorrt.fitting_tactics", lambda *_: [])
    assert TensorRT.open().plugins_for(config, "float32", ["sm86"]) == []


@pytest.mark.slow
@pytest.mark.parametrize("mixer", OPERATORS)
def test_the_graph_with_plugin_nodes_equals_pytorch(
    mixer: str, hybrid: Hybrid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On ONNX Runtime, which runs the body of each plugin node; past the windows' edges, with and without prefill."""
    package = hybrid(mixer)
    monkeypatch.setattr(build, "_plugins", lambda *_: [OPERATORS[mixer]])
    settings = EngineSettings(backend="onnx", activations="fp32", chunk=32, check_tokens=0)
    build_engine(package, tmp_path / "engine", settings)
    step = onnx.load(tmp_path / "engine" / "step.onnx", load_external_data=False)
    assert [node.op_type for node in step.graph.node if node.domain == "liger"] == 2 * [OPERATORS[mixer]]
    with torch.no_grad():
        expected = load_model(package.with_name("liger"))(torch.tensor([TOKENS])).logits[0].numpy()
    for prefilled in (0, 64):
        session = load(tmp_path / "engine")
        if prefilled:
            session.prefill(TOKENS[:prefilled])
        stepped = np.stack([session.step(token) for token in TOKENS[prefilled:]])
        assert relative_l2(stepped, expected[prefilled:]) <= 1e-5
        np.testing.assert_array_equal(stepped.argmax(-1), expected[prefilled:].argmax(-1))


@pytest.mark.usefixtures("on_sm86")
def test_only_this_machines_gpu_is_a_target(tmp_path: Path) -> None:
    backend = TensorRT.open()
    assert backend.require_targets([]) == backend.require_targets(["86", "sm_86"]) == ["sm86"]
    with pytest.raises(EngineError, match=r"sm86 here, not for sm89.*tensorrt-rtx"):
        build_engine(tmp_path / "absent", tmp_path / "engine", replace(TENSORRT, targets=("86", "89")))
    assert list(tmp_path.iterdir()) == []


def test_a_gpu_without_a_kernel_is_refused(on_sm86: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cuda, "open", lambda: Cuda(driver=None, capability="sm75"))
    with pytest.raises(EngineError, match=r"no attention kernel for sm75.*sm90"):
        TensorRT.open().require_targets([])


def test_a_missing_gpu_is_reported(on_sm86: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "tensorrt", on_sm86)
    monkeypatch.setattr("liger_export.runtime.cuda.LIBRARY", "libcuda-absent.so")
    with pytest.raises(EnvironmentMismatchError, match=r"builds on a GPU.*no NVIDIA driver.*tensorrt-rtx"):
        TensorRT.open().require_targets([])


def test_a_missing_library_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EnvironmentMismatchError, match=r"cannot be loaded.*pypi\.nvidia\.com.*\[tensorrt\]"):
        build_engine(tmp_path / "absent", tmp_path / "engine", TENSORRT)


@pytest.mark.parametrize("version", ["8.6.1", "10.9.0.34", "10.12.0.36"])
def test_a_library_that_is_too_old_is_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(version))
    with pytest.raises(EnvironmentMismatchError, match=rf"TensorRT {version} is installed; .* 10\.13 or newer"):
        TensorRT.open()


def test_a_library_that_does_not_support_this_numpy_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt("10.16.1.11"))
    monkeypatch.setattr("numpy.__version__", "2.4.0")
    with pytest.raises(EnvironmentMismatchError, match=r"10\.16\.1\.11 cannot read.*numpy 2\.4\.0.*numpy<2\.4"):
        TensorRT.open()
    monkeypatch.setattr("numpy.__version__", "2.3.5")
    assert TensorRT.open().library.version == "10.16.1.11"
