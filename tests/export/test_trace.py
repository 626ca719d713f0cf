from collections import Counter
from pathlib import Path

import onnx_ir as ir
import pytest

from liger_export.checkpoint import expected_tensors
from liger_export.config import read_config_json
from liger_export.errors import UnsupportedModelError
from liger_export.export import lower, trace
from liger_export.export.trace import ROTARY
from liger_export.linearize import LinearizeSettings
from liger_export.state import state_table
from tests.tiny import Shape, config_of, write_liger


@pytest.fixture
def traced(liger_checkpoint: Path) -> ir.Model:
    return trace(config_of(liger_checkpoint), read_config_json(liger_checkpoint))


def test_inputs_and_outputs_are_the_state_contract(traced: ir.Model, liger_checkpoint: Path) -> None:
    table = state_table(config_of(liger_checkpoint))
    graph = traced.graph
    assert [value.name for value in graph.inputs] == [
        "input_ids",
        "position_ids",
        "logits_to_keep",
        *(entry.past_name for entry in table),
    ]
    assert [value.name for value in graph.outputs] == ["logits", *(entry.present_name for entry in table)]
    shapes = [[str(size) for size in value.shape or ()] for value in graph.inputs]
    assert shapes[:4] == [["batch", "length"], ["batch", "length"], [], ["batch", "2", "8", "8"]]


def test_liger_attention_is_one_node_a_layer(traced: ir.Model) -> None:
    nodes = [node for node in traced.graph if node.op_type == "GLAAttention"]
    assert len(nodes) == 2
    attributes = {name: attribute.value for name, attribute in nodes[0].attributes.items()}
    assert attributes == {
        "num_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "window_size": 8,
        "gate_normalizer": 16.0,
        "recurrent_weight": 0.5,
    }


def test_initializers_carry_the_checkpoints_names(traced: ir.Model, liger_checkpoint: Path) -> None:
    names = set(traced.graph.initializers) - {ROTARY, "logits_to_keep"}
    assert names == set(expected_tensors(config_of(liger_checkpoint)))


def test_stock_lowering_reads_weights_as_stored_and_gives_every_liger_node_a_body(traced: ir.Model) -> None:
    lower(traced, "stock", {})
    kinds = Counter((node.domain, node.op_type) for node in traced.graph)
    assert kinds["", "Transpose"] == kinds["", "MatMul"] == 0
    assert kinds["com.microsoft", "FusedMatMul"] == 2 * 4 + 1  # q+k+v, o, gate+up, down; and the head
    bodies = {(function.domain, function.name) for function in traced.functions.values()}
    assert bodies == {("liger", "GLAAttention"), ("liger", "LastPositions")}


def test_tied_embedding_is_one_initializer(tmp_path: Path) -> None:
    tied = write_liger(tmp_path / "tied", tie_word_embeddings=True)
    model = trace(config_of(tied), read_config_json(tied))
    lower(model, "stock", {})
    assert "lm_head.weight" not in model.graph.initializers
    users = {use.node.op_type for use in model.graph.initializers["model.embed_tokens.weight"].uses()}
    assert users == {"Gather", "FusedMatMul"}


def test_head_size_that_stock_operators_refuse_is_refused_first(tmp_path: Path) -> None:
    checkpoint = write_liger(tmp_path / "liger", Shape(head_dim=10))
    with pytest.raises(UnsupportedModelError, match="multiple of 8"):
        lower(trace(config_of(checkpoint), read_config_json(checkpoint)), "stock", {})


def test_any_even_head_size_is_taken_where_no_operator_of_the_body_refuses_it(tmp_path: Path) -> None:
    checkpoint = write_liger(tmp_path / "liger", Shape(head_dim=10), settings=LinearizeSettings(mixer="lolcats"))
    model = trace(config_of(checkpoint), read_config_json(checkpoint))
    lower(model, "stock", {})
    assert ("liger", "LoLCATsAttention", "") in model.functions


def test_recurrent_weight_of_zero_is_refused_first(traced: ir.Model) -> None:
    model = traced.clone()
    for node in model.graph:
        if node.op_type == "GLAAttention":
            node.attributes["recurrent_weight"] = ir.AttrFloat32("recurrent_weight", 0.0)
    with pytest.raises(UnsupportedModelError, match="recurrent_weight is 0"):
        lower(model, "stock", {})


def test_unknown_lowering_is_refused(traced: ir.Model) -> None:
    with pytest.raises(UnsupportedModelError, match="stock"):
        lower(traced, "magic", {})


def test_graph_tells_nothing_of_the_machine_that_made_it(package: Path) -> None:
    text = (package / "model.onnx").read_bytes()
    assert b"site-packages" not in text
    assert str(Path(__file__).parent).encode() not in text
