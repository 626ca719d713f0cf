"""GPTQ of one matrix against the equations of the paper, and packages quantized with GPTQ."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from liger_export.checkpoint import MergedCheckpoint, open_liger
from liger_export.cli import app
from liger_export.convert import convert
from liger_export.errors import DataError, QuantizationError
from liger_export.evaluate import open_model
from liger_export.linearize import LinearizeSettings
from liger_export.precision import Calibration, Precision, Scheme
from liger_export.quantize import gptq
from liger_export.quantize.blocks import Blocks, dequantize, encode, unpack
from liger_export.quantize.calibrated import CalibratedCheckpoint, read_calibration
from liger_export.quantize.gptq import DAMPING, Inputs, quantize_matrix
from liger_export.runtime import load, read_tokenizer
from tests.tiny import load_model, relative_l2, write_liger

SCHEMES = [Scheme(bits, 32, symmetric) for bits in (4, 8) for symmetric in (False, True)]
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 8, "num_key_value_heads": 4}
INT4 = Precision(weights="int4", method="gptq")
WORDS = ("def ", "return ", "self.", "value", "(x)", "[0]", " = ", "+ 1", "\n    ", "for i in ", "range", ":\n")


def correlated(samples: int, columns: int, seed: int) -> torch.Tensor:
    """Correlated inputs [samples, columns] of very different magnitudes."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) * torch.rand(columns, generator=generator) ** 2
    return torch.randn(samples, columns, generator=generator) @ mixing


def naive(
    weight: npt.NDArray[np.float64], moments: npt.NDArray[np.float64], blocks: Blocks, scheme: Scheme
) -> npt.NDArray[np.float64]:
    """Equations 2 and 3 of the paper on the grid of ``blocks``, from the last column, with an explicit inverse."""
    columns = weight.shape[1]
    damped = moments + DAMPING * moments.diagonal().mean() * np.eye(columns)
    zeros = np.full(blocks.scales.shape, scheme.fixed_zero_point, np.float64)
    if blocks.zero_points is not None:
        zeros = unpack(blocks.zero_points, scheme.bits)[:, : zeros.shape[1]].astype(np.float64)
    weight = weight.copy()
    for column in reversed(range(columns)):
        inverse = np.linalg.inv(damped[: column + 1, : column + 1])  # of the columns not yet rounded
        scale, zero = blocks.scales[:, column // scheme.block_size], zeros[:, column // scheme.block_size]
        integers = np.clip(np.round(weight[:, column] / scale + zero), 0, 2**scheme.bits - 1)
        rounded = scale * (integers - zero)
        error = (weight[:, column] - rounded) / inverse[column, column]
        weight[:, :column] -= error[:, None] * inverse[column, :column]
        weight[:, column] = rounded
    return weight


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("samples", [40, 400])  # with 40 samples, only damping makes H regular
def test_columns_equal_the_equations_of_the_paper(scheme: Scheme, samples: int) -> None:
    weight = torch.randn(12, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inputs = correlated(samples, 96, seed=1).double()
    moments = inputs.T @ inputs
    blocks = quantize_matrix(weight, Inputs.of(moments.clone()), scheme)
    # Scales are float32: a value halfway between two integers may round either way and then changes later columns.
    expected = naive(weight.numpy(), moments.numpy(), blocks, scheme)
    np.testing.assert_allclose(dequantize(blocks, scheme), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_the_grid_of_the_full_range_equals_onnx_runtimes(scheme: Scheme, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gptq, "CLIPS", (1.0,))
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(2))
    weight[0, :32], weight[1, :32], weight[2, :32] = 0, 1, -weight[2, :32].abs()
    rounded = dequantize(quantize_matrix(weight, Inputs.of(torch.eye(64)), scheme), scheme)
    np.testing.assert_allclose(rounded, dequantize(encode(weight.numpy(), scheme, "rtn"), scheme), atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(SCHEMES), st.integers(0, 2**32 - 1))
def test_independent_inputs_give_rounding_to_nearest(scheme: Scheme, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight, squares = torch.randn(5, 64, generator=generator), torch.rand(64, generator=generator)
    blocks = quantize_matrix(weight, Inputs.of(torch.diag(squares)), scheme)
    rounded = torch.from_numpy(dequantize(blocks, scheme))
    # Every value is within half a step of the weight or at an end of the range.
    integers = torch.from_numpy(unpack(blocks.packed, scheme.bits))
    is_end = (integers == 0) | (integers == 2**scheme.bits - 1)
    step = torch.from_numpy(blocks.scales).abs().repeat_interleave(scheme.block_size, dim=1)
    assert bool((((rounded - weight).abs() <= step * 0.5001) | is_end).all())


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(SCHEMES), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_products_are_more_accurate_than_with_rounding_to_nearest(scheme: Scheme, blocks: int, seed: int) -> None:
    inputs = correlated(500, 32 * blocks, seed)
    weight = torch.randn(24, 32 * blocks, generator=torch.Generator().manual_seed(seed))
    chosen = quantize_matrix(weight, Inputs.of(inputs.T @ inputs), scheme)
    nearest = encode(weight.numpy(), scheme, "rtn")
    errors = [
        float((inputs @ (torch.from_numpy(dequantize(each, scheme)) - weight).T).norm()) for each in (chosen, nearest)
    ]
    assert errors[0] <= errors[1]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_zero_inputs_and_zero_rows(scheme: Scheme) -> None:
    weight = torch.randn(3, 64, generator=torch.Generator().manual_seed(3))
    weight[1] = 0
    for inputs in (torch.zeros(10, 64), torch.cat([torch.randn(10, 32), torch.zeros(10, 32)], 1)):
        rounded = dequantize(quantize_matrix(weight, Inputs.of(inputs.T @ inputs), scheme), scheme)
        assert np.isfinite(rounded).all()
        assert not rounded[1].any()


def test_rows_are_independent() -> None:
    inputs, weight = correlated(100, 64, 4), torch.randn(6, 64, generator=torch.Generator().manual_seed(4))
    prepared = Inputs.of(inputs.T @ inputs)
    whole, part = (quantize_matrix(rows, prepared, SCHEMES[0]) for rows in (weight, weight[2:5]))
    np.testing.assert_array_equal(whole.packed[2:5], part.packed)


def write_text(path: Path, tokens: int, seed: int = 0) -> Path:
    """Write about ``tokens`` tokens of text like code. The tests' tokenizer has one token per byte."""
    chosen = np.random.default_rng(seed).choice(WORDS, tokens // 4)
    path.write_text("".join(chosen)[:tokens])
    return path


@torch.no_grad()
def mean_kl(package: Path, checkpoint: Path, text: Path) -> float:
    """Mean KL divergence between the predictions of a checkpoint and a package on a text."""
    ids = read_tokenizer(package).encode(text.read_text()).ids
    expected = load_model(checkpoint)(torch.tensor([ids])).logits[0].log_softmax(-1)
    measured = torch.from_numpy(load(package).all_logits(ids)).log_softmax(-1)
    return float((expected.exp() * (expected - measured)).sum(-1).mean())


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_a_gptq_package_is_closer_to_the_model_than_rounding_to_nearest(tmp_path: Path, tied: bool) -> None:
    checkpoint = write_liger(tmp_path / "liger", tie_word_embeddings=tied, initializer_range=0.15, **SIZES)
    other, text = write_text(tmp_path / "other.txt", 500, seed=1), write_text(tmp_path / "text.txt", 4000)
    convert(checkpoint, tmp_path / "rtn", precision=Precision(weights="int4"))
    manifest = convert(checkpoint, tmp_path / "gptq", precision=INT4, calibration=Calibration(text))
    assert mean_kl(tmp_path / "gptq", checkpoint, other) < 0.8 * mean_kl(tmp_path / "rtn", checkpoint, other)
    stored = json.loads((tmp_path / "gptq" / "manifest.json").read_text())["calibration"]
    assert stored == manifest.calibration
    assert (stored["name"], stored["tokens"] % 512, len(stored["tokens_sha256"])) == ("text.txt", 0, 64)


@pytest.mark.parametrize("mixer", ["gla", "hgrn2", "gsa", "lolcats"])
@pytest.mark.parametrize("backbone", ["llama", "qwen2", "qwen3"])
def test_calibration_activations_equal_the_models(tmp_path: Path, mixer: str, backbone: str) -> None:
    """If only the head is rounded, its inputs equal those in the model."""
    settings = LinearizeSettings(mixer=mixer, keep_softmax_every=2, softmax_window=16)
    checkpoint = write_liger(tmp_path / "liger", backbone=backbone, settings=settings, **SIZES)
    opened, tokens = open_liger(checkpoint), torch.randint(1, 260, (4, 40), generator=torch.Generator().manual_seed(0))
    precision = Precision(weights="fp32", lm_head="int8", embedding="fp32", method="gptq")
    source = CalibratedCheckpoint(MergedCheckpoint(opened.weights), opened.config, precision, tokens)
    with torch.no_grad():
        hidden = load_model(checkpoint).model(tokens).last_hidden_state.flatten(0, 1)
    expected = Inputs.of(hidden.T @ hidden)
    measured = source._inputs_of_head()
    assert relative_l2(measured.importance, expected.importance) < 1e-5
    assert relative_l2(measured.lower, expected.lower) < 1e-3


def test_rows_are_returned_once_and_overridden_matrices_are_not_rounded(tmp_path: Path) -> None:
    checkpoint = write_liger(tmp_path / "liger", **SIZES)
    opened, name = open_liger(checkpoint), "model.layers.{}.mlp.down_proj.weight"
    tokens = torch.randint(1, 260, (4, 40), generator=torch.Generator().manual_seed(0))
    overrides = (("*.layers.0.*", "fp32"), ("*.up_proj.weight", "fp32"), (name.format(1), "int8"))
    precision = Precision(weights="int4", overrides=overrides, method="gptq")
    source = CalibratedCheckpoint(MergedCheckpoint(opened.weights), opened.config, precision, tokens)
    scheme = Scheme(8, 32, False)
    parts = [source.blocks(name.format(1), start, start + 32, scheme) for start in (32, 0)]
    values = np.concatenate([dequantize(part, scheme) for part in reversed(parts)])
    assert np.abs(values - source.rows(name.format(1), 0, 64)).max() < 0.05
    for missing in (name.format(0), name.format(1)):
        with pytest.raises(KeyError):
            source.blocks(missing, 0, 16, scheme)


@pytest.mark.parametrize(
    ("method", "tokens", "message"),
    [
        ("gptq", None, "gptq needs a calibration text"),
        ("rtn", 4000, "rtn does not use a calibration text"),
        ("gptq", 2046, "calibration text has 2,047 tokens; at least 2,048 are needed"),
    ],
)
def test_invalid_calibration_is_rejected_and_leaves_no_files(
    tmp_path: Path, method: str, tokens: int | None, message: str
) -> None:
    checkpoint = write_liger(tmp_path / "liger", **SIZES)
    calibration = None if tokens is None else Calibration(write_text(tmp_path / "text.txt", tokens))
    before = set(tmp_path.iterdir())
    with pytest.raises(QuantizationError, match=message):
        convert(
            checkpoint,
            tmp_path / "package",
            precision=Precision(weights="int4", method=method),
            calibration=calibration,
        )
    assert set(tmp_path.iterdir()) == before


def test_a_missing_calibration_text_is_rejected(tmp_path: Path) -> None:
    checkpoint = write_liger(tmp_path / "liger", **SIZES)
    with pytest.raises(DataError, match="does not exist"):
        convert(checkpoint, tmp_path / "package", precision=INT4, calibration=Calibration(tmp_path / "text.txt"))
    assert not (tmp_path / "package").exists()


def test_max_tokens_limits_the_calibration_text(tmp_path: Path, package: Path) -> None:
    text = write_text(tmp_path / "text.txt", 5000)
    tokens = read_calibration(Calibration(text, max_tokens=2600), open_model(package).encoder)
    assert tokens.shape == (5, 512)


@pytest.mark.slow
def test_the_convert_command_accepts_a_calibration_text(tmp_path: Path) -> None:
    checkpoint = write_liger(tmp_path / "liger", **SIZES)
    text, output = write_text(tmp_path / "text.txt", 4000), tmp_path / "package"
    options = ["--precision", "int4", "--method", "gptq", "--calibration", str(text), "--calibration-tokens", "2100"]
    result = CliRunner().invoke(app, ["convert", str(checkpoint), "-o", str(output), *options])
    assert result.exit_code == 0, result.output
    assert "gptq" in result.output
    assert json.loads((output / "manifest.json").read_text())["calibration"]["tokens"] == 2048


def test_large_weights_are_rounded_although_their_squares_overflow() -> None:
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    inputs = Inputs.of(torch.eye(64))
    for scheme in SCHEMES:
        errors = []
        for size in (1.0, 1e25):
            scaled = weight * size
            values = torch.from_numpy(dequantize(quantize_matrix(scaled, inputs, scheme), scheme))
            errors.append(relative_l2(values, scaled))
        assert errors[1] <= 2 * errors[0]


@pytest.mark.slow
def test_activations_that_overflow_are_refused(random_text: Path, tmp_path: Path) -> None:
    checkpoint = write_liger(tmp_path / "liger", **SIZES)
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["model.layers.0.mlp.down_proj.weight"].fill_(1e38)
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(QuantizationError, match=r"overflow float32 before or in layer 1"):
        convert(checkpoint, tmp_path / "package", precision=INT4, calibration=Calibration(random_text))
