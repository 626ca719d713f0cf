"""The portable lowering: the operators, sizes and weights of its graphs, for every mixer and call length."""

from pathlib import Path

import onnx_ir as ir
import pytest

from liger_export.checkpoint import expected_tensors
from liger_export.config import MIXERS, read_config_json
from liger_export.errors import InputError
from liger_export.export import trace
from liger_export.export.portable import check_prefill_length, lower_to_portable
from liger_export.linearize import LinearizeSettings
from liger_export.precision import Scheme
from tests.tiny import config_of, write_liger

LENGTHS = (1, 32)


def traced_model(folder: Path, mixer: str, activations: str) -> tuple[ir.Model, dict[str, Scheme | None]]:
    settings = LinearizeSettings(mixer=mixer, num_slots=4 if mixer == "gsa" else None, keep_softmax_every=2)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "tie_word_embeddings": True}
    checkpoint = write_liger(folder / "liger", settings=settings, **sizes)
    config = config_of(checkpoint)
    matrices = [name for name, shape in expected_tensors(config).items() if len(shape) == 2]
    scheme = Scheme(4, 32, symmetric=False)
    return trace(config, read_config_json(checkpoint), activations), dict.fromkeys(matrices, scheme)


@pytest.mark.slow
@pytest.mark.parametrize("mixer", MIXERS)
def test_graphs_hold_onnx_operators_of_fixed_sizes_over_the_same_weights(mixer: str, tmp_path: Path) -> None:
    traced, schemes = traced_model(tmp_path, mixer, "float16")
    names = []
    for length in LENGTHS:
        model = traced.clone()
        weights = lower_to_portable(model, length, schemes)
        assert {node.domain for node in model.graph} == {""}
        assert not model.functions
        assert dict(model.opset_imports) == {"": 23}
        assert {node.op_type for node in model.graph}.isdisjoint({"Shape", "If", "Loop", "Scan", "CastLike"})
        values = [*model.graph.inputs, *model.graph.outputs]
        assert all(value.shape is not None and value.shape.is_static() for value in values)
        assert [value.name for value in model.graph.inputs[:2]] == ["input_ids", "position_ids"]
        assert model.graph.inputs[0].shape == ir.Shape([1, length])
        names.append(sorted(str(view.name) for weight in weights for views in weight.values() for view in views))
    assert names[0] == names[1]
    assert "model.embed_tokens.weight" in names[0]
    assert "model.embed_tokens.weight.integers" in names[0]
    assert "model.layers.0.self_attn.q_proj.weight" not in names[0]


@pytest.mark.slow
def test_layers_share_nodes_that_depend_only_on_positions(tmp_path: Path) -> None:
    counts = {}
    for layers in (2, 4):
        checkpoint = write_liger(tmp_path / str(layers), num_hidden_layers=layers)
        model = trace(config_of(checkpoint), read_config_json(checkpoint))
        lower_to_portable(model, 32, {})
        counts[layers] = sum(node.op_type in ("Less", "GreaterOrEqual", "And") for node in model.graph)
    assert counts[2] == counts[4]


@pytest.mark.parametrize("length", [1, 8, 24, -16])
def test_prefill_calls_that_are_not_whole_chunks_are_rejected(length: int) -> None:
    with pytest.raises(InputError, match="multiple of 16"):
        check_prefill_length(length)
