import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from liger_export.checkpoint import expected_tensors
from liger_export.config import read_config_json
from liger_export.export import trace
from liger_export.export.trace import ROTARY
from liger_export.package import read_manifest
from liger_export.runtime import load
from liger_export.state import state_table
from tests.tiny import config_of, edit_json

TOKENS = [3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 9, 7]


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
    names = set(traced.graph.initializers) - {ROTARY}
    assert names == set(expected_tensors(config_of(liger_checkpoint)))


def test_graph_does_not_name_files_of_this_machine(package: Path) -> None:
    text = (package / "model.onnx").read_bytes()
    assert b"site-packages" not in text
    assert str(Path(__file__).parent).encode() not in text


def test_onnxruntime_logs_nothing_when_it_opens_a_package(package: Path) -> None:
    """An initializer that is also an input would be a warning at each load, in every language's ONNX Runtime."""
    script = (
        "import sys, onnxruntime\n"
        "model = onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])\n"
        "print(*(value.name for value in model.get_inputs()), *(v.name for v in model.get_overridable_initializers()))"
    )
    command = [sys.executable, "-c", script, str(package / "model.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.split()[:3] == ["input_ids", "position_ids", "logits_to_keep"]
    assert len(done.stdout.split()) == 3 + len(read_manifest(package).state)


def test_a_package_whose_inputs_have_defaults_computes_the_same(package: Path, package_copy: Path) -> None:
    """Packages were once written with a default for ``logits_to_keep``."""
    model = onnx.load(package_copy / "model.onnx", load_external_data=False)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0, dtype=np.int64), "logits_to_keep"))
    onnx.save(model, package_copy / "model.onnx")
    entry = (package_copy / "model.onnx").read_bytes()
    files = json.loads((package_copy / "manifest.json").read_text())["files"]
    files["model.onnx"] = {"bytes": len(entry), "sha256": hashlib.sha256(entry).hexdigest()}
    edit_json(package_copy / "manifest.json", files=files)
    old, new = load(package_copy, verify=True), load(package)
    assert [value.name for value in old.executor.model.get_overridable_initializers()] == ["logits_to_keep"]
    assert np.array_equal(old.prefill(TOKENS), new.prefill(TOKENS))
    assert np.array_equal(old.all_logits(TOKENS), new.all_logits(TOKENS))
    rows = np.array([TOKENS, TOKENS])
    past = {entry.past_name: np.zeros((2, *entry.shape), dtype=np.float32) for entry in new.manifest.state}
    assert np.array_equal(old.run(rows, 0, past)[0], new.run(rows, 0, past)[0])
