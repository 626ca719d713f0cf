"""The contract of the graphs: the page, and what an app that knows only the contract gets from ONNX Runtime."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from liger_export.config import MIXERS
from liger_export.convert import convert
from liger_export.kernels.plans import TOP_LOGITS
from liger_export.ort import library_path
from liger_export.package import MODEL_FILES, PORTABLE, read_manifest
from liger_export.package.contract import CANDIDATES, LOWERINGS, STATE_MEANINGS, contract_of
from liger_export.package.contract_page import contract_page
from liger_export.runtime import load
from liger_export.state import WINDOW_STATES
from tests.plugins.sessions import needs_library

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "graph.md"
FUSED_FILE = MODEL_FILES["fused"]
TOKENS = [3, 5, 8, 13, 21, 34, 55, 89, 144, 233]

Array = npt.NDArray[Any]


class App:
    """An app that knows a package's contract, as ``inspect --contract --json`` prints it, and ONNX Runtime."""

    def __init__(self, package: Path, file: str = "model.onnx") -> None:
        options = onnxruntime.SessionOptions()
        if file == FUSED_FILE:
            options.register_custom_ops_library(str(library_path()))
        self.model = onnxruntime.InferenceSession(package / file, options, providers=["CPUExecutionProvider"])
        self.graph = contract_of(read_manifest(package))["graphs"][file]

    def zeros(self, batch: int) -> dict[str, Array]:
        return {
            port["name"]: np.zeros((batch, *port["shape"][1:]), dtype=port["dtype"])
            for port in self.graph["inputs"]
            if port["name"].startswith("past_key_values.")
        }

    def call(self, tokens: list[list[int]], positions: list[list[int]], past: dict[str, Array]) -> dict[str, Array]:
        feeds: dict[str, Array] = {"input_ids": np.array(tokens), "position_ids": np.array(positions), **past}
        given = {"logits_to_keep": np.array(0), "temperature": np.array(0, dtype=np.float32)}
        names = [port["name"] for port in self.graph["inputs"]]
        feeds |= {name: value for name, value in given.items() if name in names}
        outputs = [port["name"] for port in self.graph["outputs"]]
        return dict(zip(outputs, self.model.run(outputs, feeds), strict=True))

    def read(self, tokens: list[int]) -> tuple[Array, dict[str, Array]]:
        """Read the start of a text. Returns the logits and the state after it."""
        found = self.call([tokens], [list(range(len(tokens)))], self.zeros(1))
        return found["logits"][0], next_states(found)


def next_states(outputs: dict[str, Array]) -> dict[str, Array]:
    return {
        name.replace("present.", "past_key_values."): tensor
        for name, tensor in outputs.items()
        if name.startswith("present.")
    }


@pytest.fixture(scope="module")
def fused(liger_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("contract") / "package"
    convert(liger_checkpoint, directory, lowering="fused")
    return directory


def test_the_page_is_generated_from_the_contract() -> None:
    assert PAGE.read_text() == contract_page(), "python -m liger_export.package.contract_page > docs/reference/graph.md"


def test_every_lowering_and_every_state_is_described() -> None:
    assert set(LOWERINGS) == {*MODEL_FILES, PORTABLE}
    assert set(STATE_MEANINGS) == {*WINDOW_STATES, *(state for mixer in MIXERS.values() for state in mixer.states)}
    assert CANDIDATES.shape == ("batch", 1 + 2 * TOP_LOGITS)


def test_a_loop_by_the_contract_gives_the_sessions_tokens(package: Path) -> None:
    app, session = App(package), load(package)
    logits, state = app.read(TOKENS)
    chosen = []
    for position in range(len(TOKENS), len(TOKENS) + 20):
        chosen.append(int(logits[-1].argmax()))
        outputs = app.call([chosen[-1:]], [[position]], state)
        logits, state = outputs["logits"][0], next_states(outputs)
    pieces = session.generate(TOKENS, max_new_tokens=20, ignore_eos=True)
    assert [token.id for piece in pieces for token in piece.tokens] == chosen


def test_sequences_at_different_positions_continue_together(package: Path) -> None:
    app = App(package)
    (_, first), (_, second) = app.read(TOKENS), app.read(TOKENS[:3])
    new = app.zeros(1)
    together = app.call(
        [[7], [9], [4]],
        [[10], [3], [0]],
        {name: np.concatenate([first[name], second[name], new[name]]) for name in new},
    )["logits"]
    alone = [app.call([[7]], [[10]], first), app.call([[9]], [[3]], second), app.call([[4]], [[0]], new)]
    for row, expected in zip(together, alone, strict=True):
        assert np.allclose(row, expected["logits"][0], rtol=1e-5, atol=1e-5)


def test_what_a_window_holds_past_the_text_is_ignored(package: Path) -> None:
    app = App(package)
    poisoned = {
        name: np.full_like(tensor, np.nan) if name.endswith(WINDOW_STATES) else tensor
        for name, tensor in app.zeros(1).items()
    }
    assert np.array_equal(app.call([TOKENS], [list(range(10))], poisoned)["logits"][0], app.read(TOKENS)[0])


def test_stock_refuses_what_the_page_says_it_refuses(package: Path) -> None:
    app = App(package)
    _, state = app.read(TOKENS)
    both = {name: np.concatenate([tensor, tensor]) for name, tensor in state.items()}
    with pytest.raises(InvalidArgument, match="batch_size must be 1"):
        app.call([[1, 2], [3, 4]], [[10, 11], [10, 11]], both)
    with pytest.raises(InvalidArgument, match="total_sequence_length"):
        app.call([[1, 0]], [[10, -1]], state)


@needs_library
def test_padding_leaves_a_state_of_a_fused_graph_as_it_is(fused: Path) -> None:
    app = App(fused, FUSED_FILE)
    _, state = app.read(TOKENS)
    alone = app.call([[7, 9]], [[10, 11]], state)
    past = {name: np.concatenate([tensor, tensor, tensor]) for name, tensor in state.items()}
    found = app.call([[7, 9, 0], [7, 0, 0], [0, 0, 0]], [[10, 11, -1], [10, -1, -1], [-1, -1, -1]], past)
    assert np.array_equal(found["logits"][0, :2], alone["logits"][0])
    for name, tensor in next_states(found).items():
        assert np.array_equal(tensor[0], next_states(alone)[name][0])
        assert np.array_equal(tensor[2], state[name][0])
