"""Inputs and outputs of a parsed network against the state table."""

from pathlib import Path

import pytest

from liger_export.engine.graph_io import GraphIO, check_io, expected_io
from liger_export.errors import EngineError
from liger_export.package import read_manifest


def test_names_shapes_and_dtypes_are_compared(package: Path) -> None:
    inputs, outputs = expected_io(read_manifest(package), 32)
    assert inputs["input_ids"] == ((1, 32), "int64")
    assert inputs["past_key_values.1.recurrent_state"] == ((1, 2, 8, 8), "float32")
    check_io(GraphIO(dict(inputs), outputs), GraphIO(inputs, outputs))
    name = "past_key_values.1.key"
    for changed, word in (
        ({key: value for key, value in inputs.items() if key != name}, "missing"),
        (inputs | {name: ((1, 2, 8, 9), "float32")}, r"float32 \[1, 2, 8, 9\]"),
        (inputs | {name: (inputs[name][0], "float16")}, "float16"),
    ):
        with pytest.raises(EngineError, match=f"The input {name} is {word}"):
            check_io(GraphIO(changed, outputs), GraphIO(inputs, outputs))
    with pytest.raises(EngineError, match="The output logits is missing"):
        check_io(GraphIO(inputs, {}), GraphIO(inputs, {"logits": outputs["logits"]}))
