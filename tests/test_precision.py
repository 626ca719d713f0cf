import dataclasses

import pytest

from liger_export.errors import QuantizationError
from liger_export.precision import Precision

MATRICES = {
    "model.embed_tokens.weight": (1000, 128),
    "model.layers.0.self_attn.q_proj.weight": (128, 128),
    "model.layers.0.mlp.down_proj.weight": (128, 96),
    "lm_head.weight": (1000, 128),
}
DOWN = "model.layers.0.mlp.down_proj.weight"


def test_the_last_matching_override_wins_over_all_other_settings() -> None:
    overrides = (("*.mlp.*", "int8"), ("model.layers.0.*", "fp32"), ("*.down_proj.weight", "int8"))
    precision = Precision(weights="int4", lm_head="int8", embedding="fp32", overrides=overrides)
    assert [precision.of(name) for name in MATRICES] == ["fp32", "fp32", "int8", "int8"]


def test_the_embedding_takes_the_precision_of_the_head() -> None:
    assert Precision(weights="int4", lm_head="int8").of("model.embed_tokens.weight") == "int8"


def test_a_precision_survives_a_round_trip_through_a_dict() -> None:
    precision = Precision(weights="int4", overrides=(("*.o_proj.weight", "int8"),), block_size=64, symmetric=True)
    assert Precision.from_dict(dataclasses.asdict(precision)) == precision


@pytest.mark.parametrize(
    ("precision", "activations", "text"),
    [
        (Precision(), "float32", "fp32"),
        (Precision(weights="bf16"), "bfloat16", "bf16"),
        (Precision(weights="bf16", activation_precision="bf16"), "bfloat16", "bf16"),
        (Precision(weights="fp16", lm_head="int8"), "float16", "fp16 (blocks of 32, rtn), head int8"),
        (Precision(weights="int4"), "float32", "int4 (blocks of 32, rtn)"),
        (
            Precision(weights="int4", lm_head="fp16", activation_precision="fp16"),
            "float16",
            "int4 (blocks of 32, rtn), head fp16, activations fp16",
        ),
        (
            Precision(weights="int8", activation_precision="bf16"),
            "bfloat16",
            "int8 (blocks of 32, rtn), activations bf16",
        ),
    ],
)
def test_activations_follow_float_weights_and_are_chosen_for_integer_weights(
    precision: Precision, activations: str, text: str
) -> None:
    precision.check(MATRICES, tied=False)
    assert (precision.activations, str(precision)) == (activations, text)


def test_a_precision_without_activation_precision_is_read() -> None:
    values = dataclasses.asdict(Precision(weights="int4"))
    del values["activation_precision"]
    assert Precision.from_dict(values) == Precision(weights="int4")


@pytest.mark.parametrize(
    ("precision", "message"),
    [
        (Precision(weights="int3"), "Unknown precision 'int3'"),
        (Precision(weights="fp16", lm_head="fp32"), "converted at every use"),
        (Precision(weights="fp16", activation_precision="bf16"), "fp16 weights need fp16 activations, not bf16"),
        (Precision(weights="int8", activation_precision="fp8"), "Unknown activation precision 'fp8'.*fp32, fp16, bf16"),
        (Precision(weights="int4", lm_head="fp32", activation_precision="fp16"), "Choose int8 or fp16"),
        (Precision(weights="int4", block_size=16), "block size 16 is not supported"),
        (
            Precision(weights="int4", block_size=128),
            "down_proj.weight has rows of 96 weights, which is not a multiple of 128",
        ),
        (Precision(weights="int4", method="magic"), "Unknown method 'magic'"),
        (Precision(weights="int4", method="k-quant", symmetric=True), "k-quant needs zero points"),
        (Precision(weights="fp32", method="gptq"), "gptq rounding applies only to integer weights"),
        (Precision(weights="fp16", symmetric=True), "Symmetric rounding applies only to integer weights"),
        (Precision(weights="int4", overrides=(("*.dwon_proj.weight", "int8"),)), "No weight matches"),
    ],
)
def test_unsupported_settings_are_rejected(precision: Precision, message: str) -> None:
    with pytest.raises(QuantizationError, match=message):
        precision.check(MATRICES, tied=False)


def test_the_error_lists_fitting_block_sizes() -> None:
    with pytest.raises(QuantizationError) as caught:
        Precision(weights="int4", block_size=64).check({DOWN: MATRICES[DOWN]}, tied=False)
    assert "Choose a block size of 32" in str(caught.value)


def test_a_tied_model_has_one_precision_for_embedding_and_head() -> None:
    precision = Precision(weights="int4", lm_head="int8", embedding="int4")
    precision.check(MATRICES, tied=False)
    with pytest.raises(QuantizationError, match="one tensor"):
        precision.check(MATRICES, tied=True)
