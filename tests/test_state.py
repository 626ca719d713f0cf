import dataclasses

import pytest

from liger_export.config import LigerConfig
from liger_export.state import by_layer, bytes_per_session, state_table
from tests.test_config import values


def test_the_table_lists_recurrent_state_key_and_value_per_layer() -> None:
    table = state_table(LigerConfig.from_dict(values()))
    assert [entry.past_name for entry in table[:4]] == [
        "past_key_values.0.recurrent_state",
        "past_key_values.0.key",
        "past_key_values.0.value",
        "past_key_values.1.recurrent_state",
    ]
    assert [entry.present_name for entry in table[:2]] == ["present.0.recurrent_state", "present.0.key"]
    assert [entry.shape for entry in table[:2]] == [(2, 8, 8), (2, 64, 8)]


def test_llama_3_8b_has_the_documented_state_size() -> None:
    config = dataclasses.replace(
        LigerConfig.from_dict(values()),
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
    )
    table = state_table(config, "float16")
    recurrent = sum(entry.nbytes for entry in table if entry.name == "recurrent_state")
    window = sum(entry.nbytes for entry in table if entry.name != "recurrent_state")
    assert (recurrent, window) == (32 * 8 * 128 * 128 * 4, 2 * 32 * 8 * 64 * 128 * 2)
    assert (round(recurrent / 1e6, 1), round(window / 1e6, 1)) == (16.8, 8.4)
    assert bytes_per_session(table) == recurrent + window


def test_state_does_not_depend_on_the_number_of_query_heads() -> None:
    config = LigerConfig.from_dict(values())
    assert state_table(config) == state_table(dataclasses.replace(config, num_attention_heads=8))


@pytest.mark.parametrize(
    ("model_type", "shapes"),
    [
        ("liger_gla", {"recurrent_state": (2, 8, 8)}),
        ("liger_qwen3_hgrn2", {"recurrent_state": (2, 8, 8)}),
        ("liger_mistral_gsa", {"slot_key": (2, 4, 8), "slot_value": (2, 4, 8)}),
        ("lolcats", {"recurrent_state": (4, 6, 8), "normalizer": (4, 6)}),
    ],
)
def test_each_mixer_has_its_own_recurrent_state(model_type: str, shapes: dict[str, tuple[int, ...]]) -> None:
    config = LigerConfig.from_dict(values(model_type=model_type, num_slots=4, feature_dim=3))
    layer = [entry for entry in state_table(config, "float16") if entry.layer == 1]
    assert {entry.name: entry.shape for entry in layer[:-2]} == shapes
    assert [(entry.name, entry.shape) for entry in layer[-2:]] == [("key", (2, 64, 8)), ("value", (2, 64, 8))]
    assert [entry.dtype for entry in layer] == ["float32"] * len(shapes) + ["float16"] * 2


def test_softmax_layers_have_only_their_own_window() -> None:
    config = LigerConfig.from_dict(values(softmax_layers=[1], softmax_window=100))
    layer = [entry for entry in state_table(config) if entry.layer == 1]
    assert [(entry.name, entry.shape) for entry in layer] == [("key", (2, 100, 8)), ("value", (2, 100, 8))]


def test_tensors_are_grouped_by_layer() -> None:
    table = state_table(LigerConfig.from_dict(values(softmax_layers=[1], num_hidden_layers=2)))
    assert by_layer(table, "abcde") == [("a", "b", "c"), ("d", "e")]
    for tensors in ("abcd", "abcdef"):
        with pytest.raises(ValueError, match="argument"):
            by_layer(table, tensors)
