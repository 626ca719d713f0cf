"""bfloat16 packages on a CPU: each operator in float32, its results rounded."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from liger_export.config import MIXERS
from liger_export.convert import convert
from liger_export.errors import EnvironmentMismatchError, PackageError
from liger_export.linearize import LinearizeSettings
from liger_export.package import read_manifest
from liger_export.parity.bfloat16 import ROUNDED, open_rounded
from liger_export.parity.compare import mean_kl, relative_l2
from liger_export.precision import Precision
from liger_export.runtime import SavedState, Session
from liger_export.runtime.dtypes import narrowed, widened
from liger_export.validate import validate
from tests.tiny import Shape, load_model, write_liger

TOKENS = [int(token) for token in np.random.default_rng(0).integers(1, 260, 60)]
WINDOW = "past_key_values.0.value"


@pytest.fixture(scope="module")
def bf16_package(liger_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    package = tmp_path_factory.mktemp("bf16") / "package"
    convert(liger_checkpoint, package, precision=Precision(weights="bf16"))
    return package


@pytest.fixture
def session(bf16_package: Path) -> Session:
    return open_rounded(bf16_package)


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("cuts", [[], [1, 2, 40]])
def test_every_mixers_graph_is_near_the_model_and_no_nearer_than_rounding_lets_it(
    mixer: str, cuts: list[int], tmp_path: Path
) -> None:
    settings = LinearizeSettings(mixer=mixer, keep_softmax_every=2, softmax_window=20)
    checkpoint = write_liger(tmp_path / "liger", Shape(head_dim=16, window=8), settings=settings, initializer_range=0.1)
    convert(checkpoint, tmp_path / "package", precision=Precision(weights="bf16"))
    session = open_rounded(tmp_path / "package")
    logits = np.concatenate([session.all_logits(part.tolist()) for part in np.split(np.array(TOKENS), cuts)])
    with torch.no_grad():
        expected = load_model(checkpoint)(torch.tensor([TOKENS])).logits[0].numpy()
    assert mean_kl(logits, expected) < 5e-3
    assert 2**-10 < relative_l2(logits, expected) < 0.05


def test_operators_round_what_they_give(session: Session, liger_checkpoint: Path) -> None:
    """The first layer's values of the first token, operator by operator, as PyTorch computes them in bfloat16."""
    session.prefill(TOKENS[:1])
    model = load_model(liger_checkpoint, torch.bfloat16).model
    layer = model.layers[0]
    with torch.no_grad():
        value = layer.self_attn.v_proj(layer.input_layernorm(model.embed_tokens(torch.tensor([TOKENS[:1]]))))[0, 0]
    stored = widened(session.state().tensors[WINDOW])[0, :, 0].reshape(-1)
    assert np.abs(stored - value.float().numpy()).max() <= 2**-8 * np.abs(stored).max()


def test_a_state_is_saved_read_and_continued_with_its_bits(session: Session, tmp_path: Path) -> None:
    session.prefill(TOKENS[:30])
    state = session.state()
    assert state.tensors[WINDOW].dtype == np.uint16
    state.save(tmp_path / "state.npz")
    read = SavedState.read(tmp_path / "state.npz")
    for name, tensor in state.tensors.items():
        np.testing.assert_array_equal(read.tensors[name], tensor)
    expected = session.all_logits(TOKENS[30:])
    session.load_state(read)
    np.testing.assert_array_equal(session.all_logits(TOKENS[30:]), expected)
    fork = session.fork()
    np.testing.assert_array_equal(fork.step(5), session.step(5))


def test_a_batch_takes_and_gives_bits(session: Session) -> None:
    rows = np.array([TOKENS[:5], TOKENS[5:10]])
    zeros = {
        entry.past_name: narrowed(np.zeros((2, *entry.shape), np.float32), entry.dtype)
        for entry in session.manifest.state
    }
    logits, present = session.run(rows, 0, zeros)
    assert present[WINDOW].dtype == np.uint16
    session.prefill(TOKENS[5:10])
    held = session.state().tensors[WINDOW][:, :, :5]  # of the rows behind, the graph's inner tensor says nothing
    np.testing.assert_array_equal(present[WINDOW][1:, :, :5], held)
    assert logits.shape == (2, 5, 260)


def test_the_report_says_how_it_was_measured_and_memory_is_left_open(
    bf16_package: Path, liger_checkpoint: Path
) -> None:
    report = validate(bf16_package, liger_checkpoint, max_tokens=4096)
    assert report.device == json.loads((bf16_package / "parity.json").read_text())["device"] == ROUNDED
    assert not any(check.name.startswith("memory") for check in report.checks)
    assert read_manifest(bf16_package).memory is None


def test_a_damaged_package_or_a_graph_for_a_gpu_is_refused(
    bf16_package: Path, liger_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(PackageError, match="no fused graph"):
        validate(bf16_package, liger_checkpoint, lowering="fused")
    with pytest.raises(EnvironmentMismatchError, match="no CUDA"):
        validate(bf16_package, liger_checkpoint, device="cuda")
    damaged = Path(shutil.copytree(bf16_package, tmp_path / "package"))
    (damaged / "tokenizer.json").write_text("{}")
    with pytest.raises(PackageError, match="was truncated"):
        validate(damaged, liger_checkpoint)
