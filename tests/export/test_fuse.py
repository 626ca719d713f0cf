from collections import Counter
from pathlib import Path

import onnx_ir as ir

from liger_export.config import read_config_json
from liger_export.export import lower_to_stock, trace
from tests.tiny import config_of, write_liger


def lowered(checkpoint: Path) -> ir.Model:
    model = trace(config_of(checkpoint), read_config_json(checkpoint))
    lower_to_stock(model, {})
    return model


def test_products_of_the_same_activations_are_one(liger_checkpoint: Path) -> None:
    names = set(lowered(liger_checkpoint).graph.initializers)
    layer = "model.layers.0."
    assert {layer + "self_attn.q_proj+k_proj+v_proj.weight", layer + "mlp.gate_proj+up_proj.weight"} <= names
    assert not {layer + "self_attn.q_proj.weight", layer + "mlp.up_proj.weight"} & names


def test_qwens_biases_are_packed_with_their_products(tmp_path: Path) -> None:
    graph = lowered(write_liger(tmp_path / "liger", backbone="qwen2")).graph
    bias = graph.initializers["model.layers.0.self_attn.q_proj+k_proj+v_proj.bias"]
    assert bias.shape == graph.initializers["model.layers.0.self_attn.q_proj+k_proj+v_proj.weight"].shape[:1]


def test_every_norm_but_the_first_adds_the_residual_too(liger_checkpoint: Path) -> None:
    kinds = Counter(node.op_type for node in lowered(liger_checkpoint).graph)
    assert (kinds["RMSNormalization"], kinds["SkipSimplifiedLayerNormalization"]) == (1, 2 * 2)
