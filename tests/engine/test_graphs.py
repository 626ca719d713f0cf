"""Operators that no parser may see, which are refused before anything is parsed."""

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from liger_export.engine.graph_io import GraphIO
from liger_export.engine.graphs import refuse_foreign_operators
from liger_export.engine.tensorrt_rtx import TensorRTRTX
from liger_export.errors import EngineError

NOTHING = GraphIO({}, {})


def graph_of(path: Path, node: onnx.NodeProto) -> Path:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8]) for name in ("x", "y")]
    graph = helper.make_graph([node], "graph", value[:1], value[1:])
    imports = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), path)
    return path


def test_operators_that_need_a_plugin_never_reach_the_parser(tmp_path: Path) -> None:
    graph = graph_of(tmp_path / "graph.onnx", helper.make_node("BiasGelu", ["x", "x"], ["y"], domain="com.microsoft"))
    with pytest.raises(EngineError, match=r"com\.microsoft::BiasGelu"):
        TensorRTRTX.open().library.build_graph(graph, tmp_path / "engine", ["sm86"], NOTHING, [])
    assert not (tmp_path / "engine").exists()


def test_foreign_operators_are_found_in_branches(tmp_path: Path) -> None:
    inner = helper.make_graph([helper.make_node("Secret", [], ["z"], domain="liger")], "inner", [], [])
    node = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
    with pytest.raises(EngineError, match="liger::Secret"):
        refuse_foreign_operators(graph_of(tmp_path / "graph.onnx", node))


def test_operators_without_a_layer_are_refused(tmp_path: Path) -> None:
    graph = graph_of(tmp_path / "graph.onnx", helper.make_node("StringNormalizer", ["x"], ["y"]))
    with pytest.raises(EngineError, match="no layer for StringNormalizer"):
        TensorRTRTX.open().library.build_graph(graph, tmp_path / "engine", ["sm86"], NOTHING, [])
