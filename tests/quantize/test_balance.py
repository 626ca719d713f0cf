"""Balanced channels: what products compute does not change, and integers of both sides round less."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from liger_export.checkpoint import MergedCheckpoint, expected_tensors, open_liger
from liger_export.precision import Precision, Scheme
from liger_export.quantize.balance import SMALLEST, channel_factors
from liger_export.quantize.blocks import dequantize, encode
from liger_export.quantize.calibrated import CalibratedCheckpoint
from tests.tiny import load_model, relative_l2, write_liger

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 8, "num_key_value_heads": 4}
INT8 = Scheme(8, 32, False)
INT8_MODEL = Precision(weights="int8", lm_head="fp32", method="gptq")


def tokens(seed: int = 0) -> Tensor:
    return torch.randint(1, 260, (4, 40), generator=torch.Generator().manual_seed(seed))


def uneven_checkpoint(directory: Path, backbone: str = "llama", **options: bool) -> Path:
    """A checkpoint whose norms have channels of very different magnitudes, as trained models do, with biases."""
    checkpoint = write_liger(directory, backbone=backbone, **SIZES, **options)
    tensors = load_file(checkpoint / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith("bias"):
            tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(2)))
        if name.endswith("layernorm.weight"):
            tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)).exp())
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    return checkpoint


def balanced_weights(checkpoint: Path, precision: Precision) -> dict[str, Tensor]:
    """Every tensor as a package stores it, dequantized; read in the order of a conversion."""
    opened = open_liger(checkpoint)
    source = CalibratedCheckpoint(MergedCheckpoint(opened.weights), opened.config, precision, tokens())
    weights = {}
    for name, shape in expected_tensors(opened.config).items():
        scheme = precision.scheme(name) if len(shape) == 2 else None
        rows = (
            dequantize(source.blocks(name, 0, shape[0], scheme), scheme) if scheme else source.rows(name, 0, shape[0])
        )
        weights[name] = torch.from_numpy(np.array(rows))
    return weights


def rounded_blocks(values: Tensor) -> Tensor:
    return torch.from_numpy(dequantize(encode(values.numpy(), Scheme(8, 32, True), "rtn"), Scheme(8, 32, True)))


@given(st.lists(st.floats(0, 1e12), min_size=1, max_size=40))
def test_factors_are_positive_and_have_a_geometric_mean_of_one(squares: list[float]) -> None:
    factors = channel_factors(torch.tensor(squares))
    assert bool((factors > 0).all())
    assert factors.double().log().mean().abs() < 1e-4
    assert float(factors.max() / factors.min()) < (len(squares) / SMALLEST) ** 0.5 * 1.01


def test_factors_are_the_square_roots_of_the_magnitudes() -> None:
    magnitudes = torch.tensor([0.25, 1.0, 4.0])
    torch.testing.assert_close(channel_factors(7 * magnitudes.square()), magnitudes.sqrt())


READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}


@pytest.mark.parametrize(("backbone", "options"), [("llama", {}), ("llama", {"mlp_bias": True}), ("qwen2", {})])
def test_balancing_does_not_change_what_the_model_computes(
    tmp_path: Path, backbone: str, options: dict[str, bool]
) -> None:
    """Norms with the matrices that read them, and up_proj with down_proj, compute what they did, but for 8 bits."""
    checkpoint = uneven_checkpoint(tmp_path / "liger", backbone, **options)
    weights = balanced_weights(checkpoint, INT8_MODEL)
    model = {name: tensor.detach() for name, tensor in load_model(checkpoint).state_dict().items()}
    for layer in range(2):
        prefix = f"model.layers.{layer}"
        for norm, names in READERS.items():
            norm = f"{prefix}.{norm}.weight"
            assert relative_l2(weights[norm], model[norm]) > 0.1
            for name in names:
                matrix = f"{prefix}.{name}.weight"
                if name != "mlp.up_proj":
                    assert relative_l2(weights[matrix] * weights[norm], model[matrix] * model[norm]) < 0.01
        norm, up, down = (f"{prefix}.{name}" for name in ("post_attention_layernorm", "mlp.up_proj", "mlp.down_proj"))
        products = [
            each[f"{down}.weight"] @ (each[f"{up}.weight"] * each[f"{norm}.weight"]) for each in (weights, model)
        ]
        assert relative_l2(*products) < 0.02
        assert relative_l2(weights[f"{up}.weight"] * weights[f"{norm}.weight"], model[f"{up}.weight"]) > 0.1
        if options:
            biases = [each[f"{down}.weight"] @ each[f"{up}.bias"] for each in (weights, model)]
            assert relative_l2(*biases) < 0.02


def test_balanced_inputs_round_less(tmp_path: Path) -> None:
    checkpoint = uneven_checkpoint(tmp_path / "liger")
    model, name = load_model(checkpoint), "model.layers.0.input_layernorm.weight"
    weights = balanced_weights(checkpoint, INT8_MODEL)
    normalized = torch.randn(50, 64, generator=torch.Generator().manual_seed(2))
    errors = []
    for tensors in (model.state_dict(), weights):
        inputs, matrix = normalized * tensors[name], tensors["model.layers.0.self_attn.q_proj.weight"]
        errors.append(relative_l2(rounded_blocks(inputs) @ matrix.T, inputs @ matrix.T))
    assert errors[1] < 0.7 * errors[0]


def test_a_norm_is_not_changed_if_a_product_that_reads_it_keeps_its_weights(tmp_path: Path) -> None:
    checkpoint = uneven_checkpoint(tmp_path / "liger")
    overrides = (("*.k_proj.weight", "fp32"), ("*.up_proj.weight", "fp32"))
    weights = balanced_weights(checkpoint, Precision(weights="int8", overrides=overrides, method="gptq"))
    model = load_model(checkpoint)
    for name, tensor in model.state_dict().items():
        if name.endswith(("layernorm.weight", "k_proj.weight", "up_proj.weight")):
            torch.testing.assert_close(weights[name], tensor, rtol=0, atol=0)
    down = "model.layers.1.mlp.down_proj.weight"
    nearest = dequantize(encode(model.state_dict()[down].numpy(), INT8, "rtn"), INT8)
    np.testing.assert_array_equal(weights[down].numpy(), nearest)
