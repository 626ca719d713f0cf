"""What is checked of a graph and of a parsed network before anything is built."""

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from liger_export.engine.check import check_signature, expected_signature, refuse_foreign_operators
from liger_export.engine.tensorrt_rtx import TensorRTRTX
from liger_export.errors import EngineError
from liger_export.package import read_manifest


def graph_of(path: Path, node: onnx.NodeProto) -> Path:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8]) for name in ("x", "y")]
    graph = helper.make_graph([node], "graph", value[:1], value[1:])
    imports = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), path)
    return path


def test_operators_that_need_a_plugin_never_reach_the_parser(tmp_path: Path) -> None:
    graph = graph_of(tmp_path / "graph.onnx", helper.make_node("BiasGelu", ["x", "x"], ["y"], domain="com.microsoft"))
    with pytest.raises(EngineError, match=r"com\.microsoft::BiasGelu"):
        TensorRTRTX.open().library.build_graph(graph, tmp_path / "engine", ["sm86"], ({}, {}), [])
    assert not (tmp_path / "engine").exists()


def test_foreign_operators_are_found_in_branches(tmp_path: Path) -> None:
    inner = helper.make_graph([helper.make_node("Secret", [], ["z"], domain="liger")], "inner", [], [])
    node = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
    with pytest.raises(EngineError, match="liger::Secret"):
        refuse_foreign_operators(graph_of(tmp_path / "graph.onnx", node))


def test_operators_without_a_layer_are_refused(tmp_path: Path) -> None:
    graph = graph_of(tmp_path / "graph.onnx", helper.make_node("StringNormalizer", ["x"], ["y"]))
    with pytest.raises(EngineError, match="no layer for StringNormalizer"):
        TensorRTRTX.open().library.build_graph(graph, tmp_path / "engine", ["sm86"], ({}, {}), [])


def test_signatures_are_compared_name_by_name_shape_by_shape_type_by_type(package: Path) -> None:
    inputs, _ = expected_signature(read_manifest(package), 32)
    assert inputs["input_ids"] == ((1, 32), "int64")
    assert inputs["past_key_values.1.recurrent_state"] == ((1, 2, 8, 8), "float32")
    check_signature("input", dict(inputs), inputs)
    name = "past_key_values.1.key"
    for changed, word in (
        ({key: value for key, value in inputs.items() if key != name}, "missing"),
        (inputs | {name: ((1, 2, 8, 9), "float32")}, r"float32 \[1, 2, 8, 9\]"),
        (inputs | {name: (inputs[name][0], "float16")}, "float16"),
    ):
        with pytest.raises(EngineError, match=f"{name} is {word}"):
            check_signature("input", changed, inputs)


def test_targets_are_named_as_people_name_them() -> None:
    assert TensorRTRTX.open().require_targets(["8.6", "sm_89", "SM120", "86"]) == ["sm86", "sm89", "sm120"]
