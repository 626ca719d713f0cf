"""The stock lowering: weights as stored, a body for every ``liger`` node, and what ONNX Runtime does not support."""

from collections import Counter
from pathlib import Path

import onnx_ir as ir
import pytest

from liger_export.config import read_config_json
from liger_export.errors import UnsupportedModelError
from liger_export.export import lower_to_stock, trace
from liger_export.linearize import LinearizeSettings
from tests.tiny import Shape, config_of, write_liger


@pytest.fixture
def traced(liger_checkpoint: Path) -> ir.Model:
    return trace(config_of(liger_checkpoint), read_config_json(liger_checkpoint))


def test_stock_lowering_reads_weights_as_stored_and_gives_every_liger_node_a_body(traced: ir.Model) -> None:
    lower_to_stock(traced, {})
    kinds = Counter((node.domain, node.op_type) for node in traced.graph)
    assert kinds["", "Transpose"] == kinds["", "MatMul"] == 0
    assert kinds["com.microsoft", "FusedMatMul"] == 2 * 4 + 1  # q+k+v, o, gate+up, down; and the head
    bodies = {(function.domain, function.name) for function in traced.functions.values()}
    assert bodies == {("liger", name) for name in ("GLAAttention", "LastPositions", "RotaryAngles")}


@pytest.mark.slow
def test_tied_embedding_is_one_initializer(tmp_path: Path) -> None:
    tied = write_liger(tmp_path / "tied", tie_word_embeddings=True)
    model = trace(config_of(tied), read_config_json(tied))
    lower_to_stock(model, {})
    assert "lm_head.weight" not in model.graph.initializers
    users = {use.node.op_type for use in model.graph.initializers["model.embed_tokens.weight"].uses()}
    assert users == {"Gather", "FusedMatMul"}


def test_head_size_that_stock_operators_do_not_support_is_rejected(tmp_path: Path) -> None:
    checkpoint = write_liger(tmp_path / "liger", Shape(head_dim=10))
    with pytest.raises(UnsupportedModelError, match="multiple of 8"):
        lower_to_stock(trace(config_of(checkpoint), read_config_json(checkpoint)), {})


def test_every_even_head_size_works_if_the_operators_of_the_body_support_it(tmp_path: Path) -> None:
    checkpoint = write_liger(tmp_path / "liger", Shape(head_dim=10), settings=LinearizeSettings(mixer="lolcats"))
    model = trace(config_of(checkpoint), read_config_json(checkpoint))
    lower_to_stock(model, {})
    assert ("liger", "LoLCATsAttention", "") in model.functions


def test_recurrent_weight_of_zero_is_rejected(traced: ir.Model) -> None:
    model = traced.clone()
    for node in model.graph:
        if node.op_type == "GLAAttention":
            node.attributes["recurrent_weight"] = ir.AttrFloat32("recurrent_weight", 0.0)
    with pytest.raises(UnsupportedModelError, match="recurrent_weight is 0"):
        lower_to_stock(model, {})
