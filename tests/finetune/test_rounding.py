from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from liger_export.convert import convert
from liger_export.errors import InputError, QuantizationError
from liger_export.evaluate import evaluate
from liger_export.finetune import finetune, transfer
from liger_export.finetune.rounding import round_to_nearest
from liger_export.precision import Precision, Scheme
from liger_export.quantize.blocks import dequantize, encode
from tests.finetune.test_lora import SETTINGS
from tests.tiny import WIDE, write_liger


@given(
    bits=st.sampled_from([4, 8]),
    block_size=st.sampled_from([32, 64, 128]),
    symmetric=st.booleans(),
    seed=st.integers(0, 1000),
    offset=st.sampled_from([0.0, 3.0, -3.0]),
)
def test_training_rounds_as_packages_do(bits: int, block_size: int, symmetric: bool, seed: int, offset: float) -> None:
    scheme = Scheme(bits, block_size, symmetric)
    weight = torch.randn(16, 256, generator=torch.Generator().manual_seed(seed)) + offset
    weight[0] = 0
    expected = dequantize(encode(weight.numpy(), scheme, "rtn"), scheme)
    rounded = round_to_nearest(weight, scheme).numpy()
    different = rounded != expected  # only values half-way between two integers, which ONNX Runtime rounds up
    assert different.mean() < 1e-3
    step = 2 * abs(weight.numpy()).max() / 2**bits  # or less
    assert abs(rounded - expected).max() <= 1.01 * step


TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
INT4 = Precision(weights="int4", lm_head="int8")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_liger(tmp_path_factory.mktemp("wide") / "liger", **WIDE)


@pytest.mark.slow
def test_the_package_has_the_measured_quality(checkpoint: Path, code_text: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, target_modules=TARGETS[:5], precision=INT4)  # other matrices are rounded once
    result = finetune(checkpoint, code_text, tmp_path / "adapter", settings, heldout=code_text)
    assert result.after.loss < 0.8 * result.before.loss

    convert(checkpoint, tmp_path / "package", adapters=(tmp_path / "adapter",), precision=INT4)
    measured = evaluate(tmp_path / "package", code_text, sequence_length=SETTINGS.sequence_length).quality
    assert measured.loss == pytest.approx(result.after.loss, rel=2e-3)  # the package also rounds activations to 8 bits


@pytest.mark.slow
def test_a_package_of_few_bits_is_better_after_training_with_them(
    checkpoint: Path, code_text: Path, tmp_path: Path
) -> None:
    losses = []
    for name, precision in (("float", Precision()), ("rounded", INT4)):
        settings = replace(SETTINGS, target_modules=TARGETS, precision=precision, max_steps=24)
        finetune(checkpoint, code_text, tmp_path / name, settings, heldout=code_text)
        package = tmp_path / f"{name}-package"
        convert(checkpoint, package, adapters=(tmp_path / name,), precision=INT4)
        losses.append(evaluate(package, code_text, sequence_length=SETTINGS.sequence_length).quality.loss)
    assert losses[1] < losses[0]


@pytest.mark.parametrize(
    ("precision", "message"),
    [
        (Precision(weights="int4", method="k-quant"), "Training cannot round with k-quant"),
        (Precision(weights="int4", block_size=128), "not a multiple of 128"),
        (Precision(weights="int3"), "Unknown precision 'int3'"),
    ],
)
def test_a_precision_that_training_cannot_round_to_is_refused(
    checkpoint: Path, code_text: Path, tmp_path: Path, precision: Precision, message: str
) -> None:
    with pytest.raises(QuantizationError, match=message):
        finetune(checkpoint, code_text, tmp_path / "adapter", replace(SETTINGS, precision=precision))


def test_feature_maps_are_not_trained_on_rounded_weights(checkpoint: Path, code_text: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Omit --precision for this stage"):
        transfer(checkpoint, code_text, tmp_path / "liger", replace(SETTINGS, precision=INT4))
