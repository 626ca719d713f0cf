"""The contract of the graphs: every input and output, for apps that run a package without this runtime.

``export`` names the inputs and outputs of graphs from this table. Imports no torch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from liger_export.package.manifest import (
    FUSED,
    FUSED_CUDA,
    MODEL_FILES,
    PORTABLE,
    STANDARD,
    STOCK,
    WASM,
    WEBGPU,
    Manifest,
)
from liger_export.state import StateTensor, bytes_per_session

__all__ = [
    "CANDIDATES",
    "LOWERINGS",
    "MOST_LIKELY",
    "RULES",
    "STATE_MEANINGS",
    "TEMPERATURE",
    "GraphContract",
    "Port",
    "contract_of",
    "graph_contracts",
    "graph_inputs",
    "graph_outputs",
    "state_ports",
]

Size = int | str  # a symbol is a size that a call chooses

BATCH, LENGTH, KEPT = "batch", "length", "kept"
TEXT = (BATCH, LENGTH)
TOP_LOGITS = 256  # as in kernels/plans.py and plugins/ort/top_logits.h
LOWERINGS = {
    STOCK: "The default, for an ONNX Runtime as it is installed.",
    FUSED: "For a CPU, with this project's operators (`convert --lowering fused`). Register its library, "
    "`liger_export.ort.library_path()`, in the session options first.",
    FUSED_CUDA: "The fused graph for NVIDIA GPUs (`convert --targets`), with the same library.",
    WASM: "For onnxruntime-web on WebAssembly (`convert --targets web`). Set `session.disable_quant_qdq` to 1 in the "
    "session options.",
    WEBGPU: "For onnxruntime-web on WebGPU (`convert --targets web`). It takes one sequence.",
    STANDARD: "In ONNX's own operators only (`convert --opset 27`), for an ONNX Runtime from 1.32 on. It "
    "takes one sequence.",
    PORTABLE: "The graphs of an engine directory (`build-engine`): `step` takes one token of one sequence, `prefill` a "
    "fixed number of them.",
}


@dataclass(frozen=True, slots=True)
class Port:
    """An input or an output of a graph.

    Attributes:
        name: its name.
        dtype: its element type.
        shape: its sizes. ``batch`` is the number of sequences, ``length`` the number of tokens of the call, and
            ``kept`` the number of positions that have logits.
        meaning: what it holds.
    """

    name: str
    dtype: str
    shape: tuple[Size, ...]
    meaning: str


@dataclass(frozen=True, slots=True)
class GraphContract:
    """The inputs and outputs of one graph file.

    Attributes:
        lowering: a key of ``LOWERINGS``.
        inputs: all of them are required.
        outputs: an app requests those that it reads.
        in_place: past states that may share their buffer with the present state of the same name.
    """

    lowering: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    in_place: tuple[str, ...] = ()


INPUT_IDS = Port("input_ids", "int64", TEXT, "Tokens to read.")
POSITION_IDS = Port(
    "position_ids",
    "int64",
    TEXT,
    "Position of each token in its text, from 0. Each row counts on from the number of tokens that it has read.",
)
LOGITS_TO_KEEP = Port(
    "logits_to_keep", "int64", (), "Number of last positions to compute logits for, from 0 to `length`; 0 for all."
)
TEMPERATURE = Port("temperature", "float32", (), "Temperature of `candidates`; 0 if they are not read.")
MOST_LIKELY = Port(
    "most_likely",
    "int64",
    (BATCH, KEPT),
    "Token with the largest logit; -1 if a logit is NaN or the largest is infinite.",
)
CANDIDATES = Port(
    "candidates",
    "float32",
    (BATCH, 1 + 2 * TOP_LOGITS),
    "Of the last position: the sum of exp((logit - largest) / temperature) of all tokens, then the "
    f"{TOP_LOGITS} largest logits, then their tokens. Not computed at a `temperature` of 0.",
)
STATE_MEANINGS = {
    "recurrent_state": "Recurrent state: key features by value features.",
    "normalizer": "Sum of the key features of the recurrent state.",
    "slot_key": "Keys of the memory slots.",
    "slot_value": "Values of the memory slots.",
    "key": "Keys of the attention window, rotated, oldest first.",
    "value": "Values of the attention window, oldest first.",
}

# Rules that hold for every package, in Markdown. They name what a reader of the table alone would not know.
RULES = {
    "First call": "All past states are zero, and positions start at 0. A state that is not zero would be read as one; "
    "rows of a window past the length of the text are ignored, whatever they hold.",
    "Later calls": "Every `present.N.X` becomes `past_key_values.N.X`, and positions count on. A prompt and a single "
    "token are read by the same graph, and any division of a text into calls gives the same logits and states. There "
    "is no maximum length. Calls of about 128 tokens need little memory and are as fast as longer ones on a CPU.",
    "`logits_to_keep`": "Pass 1 to get `logits` of shape [batch, 1, vocabulary], which choose the next token. The "
    "input has no default, because ONNX Runtime warns of a default at each load, and onnxruntime-node would ignore "
    "what is passed. Packages of earlier versions have a default of 0.",
    "Batches": "The sequences of a call may be at different positions; one may start while others continue. They do "
    "not influence each other. The stock graph starts several sequences of the same number of tokens, and continues "
    "several by one token per call; on a CPU, ONNX Runtime's attention operator refuses more. Fused graphs have no "
    "such limit. The graphs of an engine directory take one sequence.",
    "Padding": "Position -1 marks padding, after the tokens of a row. Fused graphs and the `prefill` graph of an "
    "engine directory leave the state as it is there, and the logits there have no meaning. In a fused graph a whole "
    "row may be padding. The stock graph takes no padding.",
    "End of text": "Stop when the chosen token is one of `eos_token_ids`. It is not read, unless the text goes on "
    "after it. The tokenizer in `tokenizer.json` puts the BOS token at the start, if the model has one, when it is "
    "told to add special tokens; tokens of a rendered chat template are encoded without adding any.",
    "States in place": "On a CPU, the past states that the graph's entry in `manifest.json` lists as `in_place` may "
    "be bound to the same memory as their present state. All others, and all states on a GPU, need two buffers that "
    "change places after each call. An output that ONNX Runtime allocates is always a new buffer.",
    "Saving a state": "All present states and the number of tokens read are the whole state. It continues on another "
    "machine and on another graph of the same package. Rows of a window past the length of the text are not written, "
    "so bind zeroed memory, or set them to zero, before comparing or saving states.",
    "Changing the text": "A state cannot be cut back. To take tokens back, keep a copy of the states before them.",
    "Wrong input": "NaN in a past state gives NaN logits. Not everything wrong is refused: a negative token id reads "
    "another row of the embedding table, and positions that do not count on from the tokens read give other logits.",
}


def state_ports(table: Iterable[StateTensor]) -> tuple[list[Port], list[Port]]:
    """Inputs and outputs of the states in a state table."""
    past, present = [], []
    for entry in table:
        shape: tuple[Size, ...] = (BATCH, *entry.shape)
        past.append(Port(entry.past_name, entry.dtype, shape, STATE_MEANINGS[entry.name]))
        present.append(Port(entry.present_name, entry.dtype, shape, "Its next value."))
    return past, present


def graph_inputs(lowering: str, past: Sequence[Port]) -> tuple[Port, ...]:
    """All inputs of a graph, in its order."""
    keep = () if lowering == PORTABLE else (LOGITS_TO_KEEP,)
    fused = (TEMPERATURE,) if lowering in (FUSED, FUSED_CUDA) else ()
    return (INPUT_IDS, POSITION_IDS, *keep, *past, *fused)


def graph_outputs(lowering: str, vocabulary: Size, present: Sequence[Port]) -> tuple[Port, ...]:
    """All outputs of a graph, in its order."""
    kept = LENGTH if lowering == PORTABLE else KEPT
    logits = Port("logits", "float32", (BATCH, kept, vocabulary), "Logits of the next token after each position.")
    fused = (MOST_LIKELY, CANDIDATES) if lowering in (FUSED, FUSED_CUDA) else ()
    return (logits, *present, *fused)


def graph_contracts(manifest: Manifest) -> dict[str, GraphContract]:
    """The contract of each graph of a package or engine directory, by file name."""
    if manifest.engine is not None:
        return {name: _fixed(manifest, length) for length, name in manifest.engine.files.items()}
    return {MODEL_FILES[lowering]: _contract(manifest, lowering) for lowering in manifest.graphs}


def contract_of(manifest: Manifest) -> dict[str, Any]:
    """The contract of a package or engine directory, as values for JSON."""
    config = manifest.model_config
    return {
        "model": config.model_type,
        "vocab_size": config.vocab_size,
        "bos_token_id": config.bos_token_id,
        "eos_token_ids": list(config.eos_token_ids),
        "state_bytes": bytes_per_session(manifest.state),
        "graphs": {file: asdict(contract) for file, contract in graph_contracts(manifest).items()},
        "rules": RULES,
    }


def _contract(manifest: Manifest, lowering: str) -> GraphContract:
    past, present = state_ports(manifest.state)
    in_place = () if lowering == FUSED_CUDA else tuple(manifest.graphs[lowering].in_place)
    outputs = graph_outputs(lowering, manifest.model_config.vocab_size, present)
    return GraphContract(lowering, graph_inputs(lowering, past), outputs, in_place)


def _fixed(manifest: Manifest, length: int) -> GraphContract:
    """The contract of an engine's graph for calls of ``length`` tokens; only that of one token updates in place."""
    contract = _contract(manifest, PORTABLE)
    sizes: dict[Size, Size] = {BATCH: 1, LENGTH: length}
    inputs, outputs = (
        tuple(Port(p.name, p.dtype, tuple(sizes.get(size, size) for size in p.shape), p.meaning) for p in ports)
        for ports in (contract.inputs, contract.outputs)
    )
    return GraphContract(PORTABLE, inputs, outputs, contract.in_place if length == 1 else ())
