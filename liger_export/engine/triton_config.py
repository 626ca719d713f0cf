"""The configuration of a model in Triton Inference Server, ``config.pbtxt``."""

from collections.abc import Iterable
from dataclasses import dataclass

from liger_export.engine.triton_graph import PAST_POSITION, PRESENT_POSITION
from liger_export.package import Manifest

__all__ = ["TYPES", "TritonModel", "config_text"]

TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "int64": "TYPE_INT64"}
ANY = -1
MICROSECONDS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonModel:
    """One model of a repository.

    Attributes:
        name: Its name and that of its directory.
        length: Number of tokens in a request; None for any number.
        batch: Largest number of sequences in a call.
        sequences: Largest number of sequences whose states are held.
        idle_seconds: Seconds without a request after which a sequence's state is dropped.
    """

    name: str
    length: int | None
    batch: int
    sequences: int
    idle_seconds: int


def config_text(model: TritonModel, manifest: Manifest) -> str:
    """Return the configuration. Every tensor of the state is an implicit state that starts as zeros.

    Triton pairs the inputs and outputs of states by the order of their names, whatever is listed here. The state
    table's names, and those of the position, have the same order.
    """
    states = [_state(PAST_POSITION, PRESENT_POSITION, (1,), "int64")]
    states += [_state(entry.past_name, entry.present_name, entry.shape, entry.dtype) for entry in manifest.state]
    length = ANY if model.length is None else model.length
    return f"""\
name: "{model.name}"
backend: "onnxruntime"
max_batch_size: {model.batch}
input [ {{ name: "input_ids" {_tensor((length,), "int64")} }} ]
output [ {{ name: "logits" {_tensor((1, manifest.model_config.vocab_size), "float32")} }} ]
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
sequence_batching {{
  max_sequence_idle_microseconds: {model.idle_seconds * MICROSECONDS}
  oldest {{ max_candidate_sequences: {model.sequences} }}
{"".join(states)}}}
"""


def _state(past: str, present: str, shape: tuple[int, ...], dtype: str) -> str:
    tensor = _tensor(shape, dtype)
    return f"""\
  state {{
    input_name: "{past}"
    output_name: "{present}"
    {tensor}
    initial_state {{ name: "zeros" zero_data: true {tensor} }}
  }}
"""


def _tensor(shape: Iterable[int], dtype: str) -> str:
    """Return a type and a shape, without the batch dimension."""
    return f"data_type: {TYPES[dtype]} dims: [ {', '.join(map(str, shape))} ]"
