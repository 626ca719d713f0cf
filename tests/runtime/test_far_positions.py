"""Texts of any length: sessions at set positions against the model in float64 with exact angles."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from liger_export.config import inverse_frequencies
from liger_export.convert import convert
from liger_export.engine.build import EngineSettings, build_engine
from liger_export.errors import InputError
from liger_export.package import FLOAT32_REACH
from liger_export.runtime import SavedState, Session, load
from liger_export.state import MAX_POSITION
from tests.angles import exact_angles
from tests.plugins.sessions import needs_library
from tests.tiny import edit_json, load_model, relative_l2

TOKENS = [int(token) for token in np.random.default_rng(0).integers(1, 260, 40)]
CUTS = (16, 17, 18, 35)
# A billion; texts that pass the ends of int32 and uint32; the largest position.
STARTS = (1_000_000_000, 2**31 - 20, 2**32 - 20, MAX_POSITION)


class ExactAngles(nn.Module):
    """Rotary embedding in exact arithmetic."""

    def __init__(self, frequencies: Any) -> None:
        super().__init__()
        self.frequencies = frequencies

    def forward(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        angles = exact_angles(position_ids[0].tolist(), self.frequencies)[None].to(dtype)
        return angles.cos(), angles.sin()


def expected(checkpoint: Path, start: int) -> Tensor:
    """Logits of the tokens from an empty state at a position."""
    model = load_model(checkpoint, torch.float64)
    model.model.rotary_emb = ExactAngles(inverse_frequencies(model.model.liger.rope, model.model.liger.head_dim))
    with torch.no_grad():
        logits: Tensor = model(
            torch.tensor([TOKENS]), position_ids=torch.arange(start, start + len(TOKENS))[None]
        ).logits[0]
    return logits


def empty_state(session: Session, position: int) -> SavedState:
    table = session.manifest.state
    return SavedState(position, {entry.past_name: np.zeros((1, *entry.shape), entry.dtype) for entry in table})


def read(session: Session, start: int) -> Tensor:
    session.load_state(empty_state(session, start))
    calls = zip((0, *CUTS), (*CUTS, len(TOKENS)), strict=True)
    logits = torch.from_numpy(np.concatenate([session.all_logits(TOKENS[first:last]) for first, last in calls]))
    assert session.position == start + len(TOKENS)
    return logits


@pytest.fixture(scope="module")
def fused_package(liger_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("far") / "package"
    convert(liger_checkpoint, directory, lowering="fused")
    return directory


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("lowering", ["stock", pytest.param("fused", marks=needs_library)])
def test_a_package_reads_exactly_at_any_position(
    lowering: str, start: int, fused_package: Path, liger_checkpoint: Path
) -> None:
    session = load(fused_package, lowering=lowering, device="cpu")
    assert relative_l2(read(session, start), expected(liger_checkpoint, start)) < 1e-5


def test_an_engine_directory_reads_exactly_at_any_position(
    package: Path, liger_checkpoint: Path, tmp_path: Path
) -> None:
    settings = EngineSettings(backend="onnx", activations="fp32", chunk=32, check_tokens=0)
    build_engine(package, tmp_path / "engine", settings)
    session = load(tmp_path / "engine")
    for start in STARTS:
        assert relative_l2(read(session, start), expected(liger_checkpoint, start)) < 1e-5


def test_pytorch_reads_exactly_at_any_position(liger_checkpoint: Path) -> None:
    model = load_model(liger_checkpoint)
    for start in STARTS:
        positions = torch.arange(start, start + len(TOKENS))[None]
        with torch.no_grad():
            logits = model(torch.tensor([TOKENS]), position_ids=positions).logits[0]
        assert relative_l2(logits, expected(liger_checkpoint, start)) < 1e-5


@pytest.fixture
def old_package(package_copy: Path) -> Path:
    """A package whose manifest is of format 4, in which no graph had exact angles."""
    path = package_copy / "manifest.json"
    graphs = json.loads(path.read_text())["graphs"]
    for graph in graphs.values():
        del graph["exact_angles"]
    edit_json(path, format_version=4, graphs=graphs)
    return package_copy


def test_an_older_package_reads_only_as_far_as_its_angles_are_accurate(old_package: Path) -> None:
    session = load(old_package)
    session.load_state(empty_state(session, FLOAT32_REACH - 2))
    session.prefill(TOKENS[:1])
    with pytest.raises(InputError, match=r"inaccurate after 1,048,576 tokens.*Convert the checkpoint again"):
        session.prefill(TOKENS[:2])
    session.step(TOKENS[1])
    assert session.position == FLOAT32_REACH
    for refused in (
        session.step,
        lambda token: session.all_logits([token]),
        lambda token: list(session.generate([token])),
    ):
        with pytest.raises(InputError, match="inaccurate after"):
            refused(TOKENS[2])
    past = session.state().tensors
    with pytest.raises(InputError, match="inaccurate after"):
        session.run(np.array([TOKENS[:1]]), FLOAT32_REACH, past)
    session.reset()
    assert len(session.all_logits(TOKENS)) == len(TOKENS)


def test_a_state_of_an_older_package_continues_in_a_new_one(old_package: Path, package: Path) -> None:
    old, new = load(old_package), load(package)
    old.prefill(TOKENS[:20])
    new.load_state(old.state())
    new.prefill(TOKENS[20:])
    assert new.position == len(TOKENS)


@pytest.mark.parametrize("position", [-1, MAX_POSITION + 1, 2**63])
def test_a_position_that_int64_does_not_hold_is_refused(position: int, package: Path) -> None:
    session = load(package)
    state = empty_state(session, position)
    with pytest.raises(InputError, match=f"position {position}"):
        session.load_state(state)
    with pytest.raises(InputError, match=f"position is {position}"):
        session.run(np.array([TOKENS]), position, state.tensors)
