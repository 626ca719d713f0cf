"""bfloat16 packages on a CPU: each operator computes in float32 and rounds its results."""

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
from liger_export.parity.compare import mean_kl, relative_l2
from liger_export.parity.opening import ROUNDED, open_emulated
from liger_export.precision import Precision
from liger_export.runtime import SavedState, Session
from liger_export.runtime.dtypes import narrowed, widened
from liger_export.validate import ValidationSettings, validate
from tests.plugins.sessions import needs_library
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
    return open_emulated(bf16_package)


@pytest.mark.slow
@pytest.mark.parametrize("mixer", MIXERS)
def test_each_mixers_error_is_small_and_not_below_one_rounding(mixer: str, tmp_path: Path) -> None:
    settings = LinearizeSettings(mixer=mixer, keep_softmax_every=2, softmax_window=20)
    checkpoint = write_liger(tmp_path / "liger", Shape(head_dim=16, window=8), settings=settings, initializer_range=0.1)
    convert(checkpoint, tmp_path / "package", precision=Precision(weights="bf16"))
    session = open_emulated(tmp_path / "package")
    with torch.no_grad():
        expected = load_model(checkpoint)(torch.tensor([TOKENS])).logits[0].numpy()
    cuts: list[int]
    for cuts in ([], [1, 2, 40]):
        session.reset()
        logits = np.concatenate([session.all_logits(part.tolist()) for part in np.split(np.array(TOKENS), cuts)])
        assert mean_kl(logits, expected) < 5e-3
        assert 2**-10 < relative_l2(logits, expected) < 0.05


def test_operators_round_their_results(session: Session, liger_checkpoint: Path) -> None:
    """The first layer's values for the first token, compared with PyTorch in bfloat16."""
    session.prefill(TOKENS[:1])
    model = load_model(liger_checkpoint, torch.bfloat16).model
    layer = model.layers[0]
    with torch.no_grad():
        value = layer.self_attn.v_proj(layer.input_layernorm(model.embed_tokens(torch.tensor([TOKENS[:1]]))))[0, 0]
    stored = widened(session.state().tensors[WINDOW])[0, :, 0].reshape(-1)
    assert np.abs(stored - value.float().numpy()).max() <= 2**-8 * np.abs(stored).max()


def test_a_saved_state_keeps_its_bits(session: Session, tmp_path: Path) -> None:
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


def test_a_batch_reads_and_returns_bits(session: Session) -> None:
    rows = np.array([TOKENS[:5], TOKENS[5:10]])
    zeros = {
        entry.past_name: narrowed(np.zeros((2, *entry.shape), np.float32), entry.dtype)
        for entry in session.manifest.state
    }
    logits, present = session.run(rows, 0, zeros)
    assert present[WINDOW].dtype == np.uint16
    session.prefill(TOKENS[5:10])
    held = session.state().tensors[WINDOW][:, :, :5]  # the contents of unused rows are undefined
    np.testing.assert_array_equal(present[WINDOW][1:, :, :5], held)
    assert logits.shape == (2, 5, 260)


@pytest.mark.slow
def test_the_report_names_the_emulation_and_memory_is_not_measured(bf16_package: Path, liger_checkpoint: Path) -> None:
    report = validate(bf16_package, liger_checkpoint, ValidationSettings(max_tokens=4096))
    assert report.device == json.loads((bf16_package / "parity.json").read_text())["device"] == ROUNDED
    assert not any(check.name.startswith("memory") for check in report.checks)
    assert read_manifest(bf16_package).memory is None


@pytest.mark.slow
@needs_library
def test_the_fused_graph_is_validated_as_it_runs(tmp_path: Path) -> None:
    checkpoint = write_liger(tmp_path / "liger", initializer_range=0.1)
    convert(checkpoint, tmp_path / "package", lowering="fused", precision=Precision(weights="bf16"))
    report = validate(tmp_path / "package", checkpoint, ValidationSettings(max_tokens=4096, memory_tokens=128))
    assert report.passed
    assert (report.lowering, report.device) == ("fused", "cpu")
    names = [check.name for check in report.checks]
    assert any(name.startswith("memory") for name in names)
    assert any(name.startswith("fused against stock") for name in names)


def test_a_damaged_package_and_a_graph_for_a_gpu_are_refused(
    bf16_package: Path, liger_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(PackageError, match="no fused graph"):
        validate(bf16_package, liger_checkpoint, ValidationSettings(lowering="fused"))
    with pytest.raises(EnvironmentMismatchError, match="does not support CUDA"):
        validate(bf16_package, liger_checkpoint, ValidationSettings(device="cuda"))
    damaged = Path(shutil.copytree(bf16_package, tmp_path / "package"))
    (damaged / "tokenizer.json").write_text("{}")
    with pytest.raises(PackageError, match="was truncated"):
        validate(damaged, liger_checkpoint)
