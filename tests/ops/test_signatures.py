from liger_export.config import LAYER_MIXERS, MIXERS, SOFTMAX
from liger_export.onnx_functions.portable import PORTABLE_BODIES
from liger_export.onnx_functions.schemas import SCHEMAS
from liger_export.onnx_functions.stock import STOCK_BODIES
from liger_export.ops import ATTENTIONS, NAIVE_ATTENTIONS, SIGNATURES, initial_parameters
from tests.ops.cases import Case


def test_every_mixer_has_an_operator_a_reference_and_a_body_per_lowering() -> None:
    every = {*MIXERS, SOFTMAX}
    assert set(LAYER_MIXERS) == set(SIGNATURES) == set(ATTENTIONS) == set(NAIVE_ATTENTIONS) == every
    assert set(STOCK_BODIES) == set(PORTABLE_BODIES) == every
    assert {signature.onnx_name for signature in SIGNATURES.values()} < set(SCHEMAS)


def test_numbers_that_an_operator_takes_are_fields_of_its_mixer() -> None:
    for mixer, fields in ((mixer, set(row.fields)) for mixer, row in MIXERS.items()):
        assert {*SIGNATURES[mixer].options, *SIGNATURES[mixer].sizes} <= fields


def test_states_stand_in_the_order_of_the_state_table_on_both_sides() -> None:
    lolcats = SIGNATURES["lolcats"]
    assert lolcats.states == ("recurrent_state", "normalizer", "window_key", "window_value")
    assert lolcats.inputs[6:] == (*lolcats.states, "query_map", "key_map", "window_factors")
    assert [output.name for output in SCHEMAS["LoLCATsAttention"].outputs] == [
        "output",
        *(f"next_{name}" for name in lolcats.states),
    ]


def test_learned_tensors_start_in_the_shapes_that_the_mixers_row_states() -> None:
    for name, row in MIXERS.items():
        case = Case(name)
        initial = initial_parameters(case)
        assert {each: tuple(tensor.shape) for each, tensor in initial.items()} == row.parameter_shapes(case)
