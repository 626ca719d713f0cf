"""The fused graph's linear layers are operators that compute what the stock graph does."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from liger_export.convert import convert
from liger_export.package import MODEL_FILES
from liger_export.parity.compare import mean_kl
from liger_export.parity.opening import open_stock
from liger_export.precision import Precision
from liger_export.runtime import load
from tests.backbones import VARIANTS, write_hybrid, write_variant
from tests.cells import slow_except
from tests.plugins.sessions import needs_library

TOKENS = [int(token) for token in np.random.default_rng(0).integers(1, 260, 60)]
BOUND = 1e-3  # mean KL: both graphs round activations to 8 bits, which amplifies differences in the last bit
BFLOAT16_BOUND = 5e-3  # mean KL: of a bfloat16 package


def package_of(directory: Path, precision: Precision, variant: str = "llama", **sizes: int) -> Path:
    write_variant(directory / "liger", "gla", variant, **sizes)
    convert(directory / "liger", directory / "package", lowering="fused", precision=precision)
    return directory / "package"


def operators(package: Path) -> list[str]:
    graph = onnx.load(package / MODEL_FILES["fused"], load_external_data=False).graph
    return [node.op_type for node in graph.node]


def distance(package: Path) -> float:
    """Mean KL between the fused and the stock graph: in one call, and token by token."""
    stock, fused = open_stock(package), load(package, lowering="fused")
    expected = stock.all_logits(TOKENS)
    whole = fused.all_logits(TOKENS)
    fused.reset()
    steps = np.stack([fused.step(token) for token in TOKENS])
    return max(mean_kl(whole, expected), mean_kl(steps, expected))


@needs_library
@pytest.mark.parametrize("variant", slow_except(["qwen3"], VARIANTS))
def test_integer_layers_compute_what_stock_does_on_every_backbone(variant: str, tmp_path: Path) -> None:
    package = package_of(tmp_path, Precision(weights="int4"), variant)
    names = operators(package)
    assert "IntegerLinear" in names
    assert "MatMulNBits" not in names
    assert distance(package) < BOUND


@pytest.mark.slow
@needs_library
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("weights", "block_size"), [("int4", 32), ("int8", 32), ("int4", 64), ("int8", 64)])
def test_integer_layers_compute_what_stock_does_in_every_scheme(
    weights: str, block_size: int, symmetric: bool, tmp_path: Path
) -> None:
    precision = Precision(weights=weights, block_size=block_size, symmetric=symmetric)
    assert distance(package_of(tmp_path, precision, intermediate_size=128)) < BOUND


@needs_library
@pytest.mark.parametrize(("weights", "down", "products"), [("int4", "fp32", 3), ("fp32", "int4", 10)])
def test_layers_that_are_not_quantized_keep_their_operators(
    weights: str, down: str, products: int, tmp_path: Path
) -> None:
    precision = Precision(weights=weights, overrides=(("*.down_proj.weight", down),))
    package = package_of(tmp_path, precision, num_hidden_layers=3)
    names = operators(package)
    assert (names.count("FusedMatMul"), names.count("IntegerLinear")) == (products, 13 - products)
    assert ("SkipSimplifiedLayerNormalization" in names) == (weights == "fp32")
    assert distance(package) < BOUND


@needs_library
@pytest.mark.parametrize("variant", slow_except(["qwen3"], ["qwen3", "llama-biased"]))
def test_float16_layers_compute_what_stock_does(variant: str, tmp_path: Path) -> None:
    package = package_of(tmp_path, Precision(weights="fp16"), variant, hidden_size=64, intermediate_size=96)
    names = operators(package)
    assert (names.count("Linear"), names.count("Logits")) == (4 * names.count("Attention"), 1)
    assert not {"FusedMatMul", "Gemm", "MatMul"} & set(names)
    assert distance(package) < BOUND


@needs_library
def test_float16_rows_that_are_not_a_multiple_of_16_keep_their_operator(tmp_path: Path) -> None:
    package = package_of(tmp_path, Precision(weights="fp16"), hidden_size=64, intermediate_size=40)
    names = operators(package)
    assert (names.count("FusedMatMul"), names.count("Linear")) == (
        names.count("Attention"),
        3 * names.count("Attention"),
    )
    assert distance(package) < BOUND


@needs_library
@pytest.mark.parametrize("variant", slow_except(["qwen3"], ["qwen3", "llama-biased", "qwen2-tied"]))
@pytest.mark.parametrize("weights", slow_except(["bf16"], ["bf16", "int4"]))
def test_bfloat16_layers_compute_what_stock_does_in_float32_and_rounded(
    weights: str, variant: str, tmp_path: Path
) -> None:
    precision = Precision(weights=weights, activation_precision="bf16")
    package = package_of(tmp_path, precision, variant, hidden_size=64, intermediate_size=96)
    names = operators(package)
    assert not {"FusedMatMul", "Gemm", "MatMul", "MatMulNBits"} & set(names)
    assert distance(package) < BFLOAT16_BOUND


@needs_library
@pytest.mark.parametrize("mixer", slow_except(["gsa"], ["gla", "hgrn2", "gsa", "lolcats"]))
def test_every_mixer_and_softmax_run_in_bfloat16(mixer: str, tmp_path: Path) -> None:
    write_hybrid(tmp_path / "liger", mixer)
    convert(tmp_path / "liger", tmp_path / "package", lowering="fused", precision=Precision(weights="bf16"))
    assert {"SoftmaxAttention", "Cast"} < set(operators(tmp_path / "package"))
    assert distance(tmp_path / "package") < BFLOAT16_BOUND


@needs_library
def test_a_bfloat16_layer_without_an_operator_is_multiplied_in_float32(tmp_path: Path) -> None:
    package = package_of(tmp_path, Precision(weights="bf16"), hidden_size=64, intermediate_size=40)
    assert (operators(package).count("FusedMatMul"), operators(package).count("Linear")) == (2, 6)
    assert distance(package) < BFLOAT16_BOUND


@needs_library
def test_half_precision_head_writes_float32_logits(tmp_path: Path) -> None:
    package = package_of(tmp_path, Precision(weights="int4", activation_precision="fp16"))
    assert operators(package).count("IntegerLogits") == 1
    assert load(package).all_logits(TOKENS).dtype == np.float32


def test_a_graph_without_integers_does_not_change(tmp_path: Path) -> None:
    names = operators(package_of(tmp_path, Precision()))
    assert not {"IntegerLinear", "Linear"} & set(names)
    assert "FusedMatMul" in names
