from pathlib import Path

import onnx_ir as ir
import pytest

from liger_export.checkpoint import expected_tensors
from liger_export.config import read_config_json
from liger_export.export import trace
from liger_export.export.trace import ROTARY
from liger_export.state import state_table
from tests.tiny import config_of


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


def test_liger_attention_is_one_node_per_layer(traced: ir.Model) -> None:
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


def test_graph_does_not_name_files_of_this_machine(package: Path) -> None:
    text = (package / "model.onnx").read_bytes()
    assert b"site-packages" not in text
    assert str(Path(__file__).parent).encode() not in text
