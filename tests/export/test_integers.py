"""Quantized packages against the same model with dequantized weights."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from liger_export.convert import convert
from liger_export.errors import QuantizationError
from liger_export.precision import Precision
from liger_export.quantize.blocks import dequantize, encode
from liger_export.runtime import load
from tests.cells import slow_except
from tests.tiny import load_model, relative_l2, reseal, write_liger

TOKENS = [int(token) for token in np.random.default_rng(0).integers(1, 260, 40)]
# Rows of 64, 64 and 96 weights, for blocks of 32.
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 8, "num_key_value_heads": 4}


@torch.no_grad()
def logits_of_rounded_model(checkpoint: Path, precision: Precision) -> torch.Tensor:
    """PyTorch's logits with every weight quantized and dequantized."""
    model = load_model(checkpoint)
    for name, parameter in model.named_parameters():
        scheme = precision.scheme(name) if parameter.dim() == 2 else None
        if scheme:
            rounded = dequantize(encode(parameter.numpy(), scheme, precision.method), scheme)
            parameter.copy_(torch.from_numpy(rounded))
    logits: torch.Tensor = model(torch.tensor([TOKENS])).logits[0]
    return logits


def multiply_in_float32(package: Path) -> None:
    """Make MatMulNBits multiply float32 activations, which it otherwise rounds to 8 bits."""
    model = onnx.load(package / "model.onnx", load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 1
    onnx.save(model, package / "model.onnx")
    reseal(package)


@pytest.mark.parametrize(
    ("backbone", "tied"),
    slow_except([("llama", True), ("qwen2", False)], product(["llama", "qwen2", "qwen3"], [False, True])),
)
@pytest.mark.parametrize(
    "precision",
    [
        Precision(weights="int4"),
        Precision(weights="int8", symmetric=True),
        Precision(weights="int4", method="k-quant", lm_head="int8"),
        Precision(weights="int4", overrides=(("*.k_proj.weight", "int8"), ("model.layers.1.*", "fp32"))),
    ],
    ids=str,
)
def test_package_computes_with_the_rounded_weights(
    tmp_path: Path, backbone: str, tied: bool, precision: Precision
) -> None:
    checkpoint = write_liger(tmp_path / "liger", backbone=backbone, tie_word_embeddings=tied, **SIZES)
    convert(checkpoint, tmp_path / "package", precision=precision)
    multiply_in_float32(tmp_path / "package")
    logits = torch.from_numpy(load(tmp_path / "package").all_logits(TOKENS))
    assert relative_l2(logits, logits_of_rounded_model(checkpoint, precision)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_integers_are_multiplied_with_half_precision_activations(weights: str, tied: bool, tmp_path: Path) -> None:
    checkpoint = write_liger(tmp_path / "liger", backbone="qwen2", tie_word_embeddings=tied, **SIZES)
    precision = Precision(weights=weights, activation_precision="fp16")
    convert(checkpoint, tmp_path / "package", precision=precision)
    graph = onnx.load(tmp_path / "package" / "model.onnx", load_external_data=False).graph
    stored = {tensor.data_type for tensor in graph.initializer if tensor.external_data}
    assert stored == {onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT16}
    multiply_in_float32(tmp_path / "package")
    session = load(tmp_path / "package")
    logits = torch.from_numpy(session.all_logits(TOKENS))
    assert relative_l2(logits, logits_of_rounded_model(checkpoint, precision)) < 1e-2
    assert session.state().tensors["past_key_values.0.key"].dtype == np.float16


def test_a_tied_table_and_head_lie_in_the_file_once(tmp_path: Path) -> None:
    checkpoint = write_liger(tmp_path / "liger", tie_word_embeddings=True, **SIZES)
    convert(checkpoint, tmp_path / "package", precision=Precision(weights="int4"))
    graph = onnx.load(tmp_path / "package" / "model.onnx", load_external_data=False).graph
    places = {tensor.name: {entry.key: entry.value for entry in tensor.external_data} for tensor in graph.initializer}
    table, head = places["model.embed_tokens.weight.packed2d"], places["model.embed_tokens.weight.packed3d"]
    assert table == head


def test_manifest_says_how_weights_are_stored(tmp_path: Path) -> None:
    checkpoint = write_liger(tmp_path / "liger", **SIZES)
    precision = Precision(weights="int4", lm_head="int8", symmetric=True)
    convert(checkpoint, tmp_path / "package", precision=precision)
    stored = json.loads((tmp_path / "package" / "manifest.json").read_text())["precision"]
    assert Precision.from_dict(stored) == precision


def test_sizes_that_are_not_multiples_of_the_block_are_rejected_and_nothing_is_left(tmp_path: Path) -> None:
    checkpoint = write_liger(tmp_path / "liger")
    with pytest.raises(QuantizationError, match="not a multiple of 32"):
        convert(checkpoint, tmp_path / "package", precision=Precision(weights="int4"))
    assert not (tmp_path / "package").exists()


@pytest.mark.parametrize("backbone", slow_except(["llama"], ["llama", "qwen3"]))
def test_half_precision_package_is_near_the_model(tmp_path: Path, backbone: str) -> None:
    checkpoint = write_liger(tmp_path / "liger", backbone=backbone)
    convert(checkpoint, tmp_path / "package", precision=Precision(weights="fp16"))
    expected = load_model(checkpoint)(torch.tensor([TOKENS])).logits[0]
    assert relative_l2(torch.from_numpy(load(tmp_path / "package").all_logits(TOKENS)), expected) < 1e-2
