"""The graph in ONNX's own operators: in onnx's reference evaluator against the naive reference, and in ONNX Runtime."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from liger_export.convert import convert
from liger_export.errors import EnvironmentMismatchError, UnsupportedModelError
from liger_export.export import standard
from liger_export.linearize import LinearizeSettings
from liger_export.package import MODEL_FILES, read_manifest
from liger_export.precision import Precision
from tests.cells import slow_except
from tests.export.test_integers import SIZES, TOKENS, logits_of_rounded_model
from tests.export.test_web import opened, read
from tests.tiny import load_model, relative_l2, write_liger

pytestmark = pytest.mark.skipif(onnx.defs.onnx_opset_version() < 27, reason="onnx has no opset 27")


def feed_of(graph: onnx.GraphProto, tokens: list[int]) -> dict[str, np.ndarray]:
    """A call from the start of a text."""
    feed = {
        "input_ids": np.array([tokens]),
        "position_ids": np.arange(len(tokens))[None],
        "logits_to_keep": np.array(0),
    }
    for each in graph.input:
        if each.name.startswith("past"):
            feed[each.name] = np.zeros([dim.dim_value for dim in each.type.tensor_type.shape.dim], np.float32)
    return feed


@pytest.mark.parametrize("mixer", slow_except(["gla"], ["gla", "hgrn2"]))
def test_onnxs_reference_evaluator_computes_what_pytorch_does(mixer: str, tmp_path: Path) -> None:
    checkpoint = write_liger(tmp_path / "liger", settings=LinearizeSettings(mixer=mixer, window_size=8))
    convert(checkpoint, tmp_path / "package", opset=27)
    model = onnx.load(tmp_path / "package" / MODEL_FILES["standard"])
    onnx.checker.check_model(model, full_check=True)
    tokens = TOKENS[:20]
    [logits] = ReferenceEvaluator(model).run(["logits"], feed_of(model.graph, tokens))
    with torch.no_grad():
        expected = load_model(checkpoint)(torch.tensor([tokens])).logits
    assert relative_l2(torch.from_numpy(logits), expected) < 1e-5


@pytest.mark.parametrize("keep_softmax_every", [None, 2])
def test_onnx_runtime_computes_what_it_does_with_the_stock_graph_in_any_split(
    keep_softmax_every: int | None, tmp_path: Path
) -> None:
    settings = LinearizeSettings(window_size=8, keep_softmax_every=keep_softmax_every)
    convert(write_liger(tmp_path / "liger", settings=settings), tmp_path / "package", opset=27)
    stock, standard_graph = (read(opened(tmp_path / "package", lowering)) for lowering in ("stock", "standard"))
    for expected, result in zip(stock, standard_graph, strict=True):
        assert relative_l2(torch.from_numpy(result), torch.from_numpy(expected)) < 1e-5


@pytest.mark.slow
def test_integer_weights_are_read_as_onnx_stores_them(tmp_path: Path) -> None:
    checkpoint = write_liger(tmp_path / "liger", backbone="qwen2", tie_word_embeddings=True, **SIZES)
    precision = Precision(weights="int8")
    convert(checkpoint, tmp_path / "package", precision=precision, opset=27)
    session = opened(tmp_path / "package", "standard")
    graph = onnx.load(tmp_path / "package" / MODEL_FILES["standard"], load_external_data=False).graph
    [logits] = session.run(["logits"], feed_of(graph, TOKENS))
    assert relative_l2(torch.from_numpy(logits[0]), logits_of_rounded_model(checkpoint, precision)) < 1e-5


def test_no_operator_is_of_onnx_runtime(tmp_path: Path) -> None:
    convert(
        write_liger(tmp_path / "liger", **SIZES), tmp_path / "package", precision=Precision(weights="int8"), opset=27
    )
    model = onnx.load(tmp_path / "package" / MODEL_FILES["standard"], load_external_data=False)
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    assert {node.domain for node in nodes} == {"", "liger"}
    assert {"LinearAttention", "DequantizeLinear", "RMSNormalization"} < {node.op_type for node in nodes}
    own = {function.name for function in model.functions}
    assert {node.op_type for node in nodes if node.domain == "liger"} <= own, "every operator of ours has a body"
    assert read_manifest(tmp_path / "package").graphs["standard"].opsets["ai.onnx"] == 27


def test_4_bit_rows_that_end_within_a_byte_are_refused(tmp_path: Path) -> None:
    checkpoint = write_liger(tmp_path / "liger", **SIZES)  # 96 columns: 3 blocks
    with pytest.raises(UnsupportedModelError, match="end within a byte"):
        convert(checkpoint, tmp_path / "package", precision=Precision(weights="int4"), opset=27)
    assert not (tmp_path / "package").exists()


def test_other_mixers_and_opsets_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = write_liger(tmp_path / "liger", settings=LinearizeSettings(mixer="gsa"))
    with pytest.raises(UnsupportedModelError, match="gsa"):
        convert(checkpoint, tmp_path / "package", opset=27)
    gla = write_liger(tmp_path / "gla")
    with pytest.raises(UnsupportedModelError, match="opset 24"):
        convert(gla, tmp_path / "package", opset=24)
    monkeypatch.setattr(standard.onnx.defs, "onnx_opset_version", lambda: 26)
    with pytest.raises(EnvironmentMismatchError, match="opset 27"):
        convert(gla, tmp_path / "package", opset=27)
