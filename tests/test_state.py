import dataclasses

from liger_export.config import LigerConfig
from liger_export.state import bytes_per_session, state_table
from tests.test_config import values


def test_table_lists_recurrent_state_key_and_value_layer_by_layer() -> None:
    table = state_table(LigerConfig.from_dict(values()))
    assert [entry.past_name for entry in table[:4]] == [
        "past_key_values.0.recurrent_state",
        "past_key_values.0.key",
        "past_key_values.0.value",
        "past_key_values.1.recurrent_state",
    ]
    assert [entry.present_name for entry in table[:2]] == ["present.0.recurrent_state", "present.0.key"]
    assert [entry.shape for entry in table[:2]] == [(2, 8, 8), (2, 64, 8)]


def test_llama_3_8b_holds_the_bytes_the_design_states() -> None:
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
