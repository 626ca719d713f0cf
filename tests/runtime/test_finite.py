"""A value that is too large for fp16: every way to choose a token is refused, and the error names its layer."""

from pathlib import Path

import numpy as np
import pytest

from liger_export.convert import convert
from liger_export.errors import InputError, NotFiniteError
from liger_export.precision import Precision
from liger_export.runtime import Sampling, load
from liger_export.runtime.finite import not_finite
from tests.plugins.sessions import needs_library
from tests.tiny import WIDE, write_liger, write_overflowing

PLACES = [
    ("model.layers.0.self_attn.v_proj", r"layer 0 \(counted from 0\)"),
    ("model.layers.0.self_attn.o_proj", r"layer 0 \(counted from 0\)"),
    ("model.layers.0.mlp.down_proj", r"layer 0 \(counted from 0\)"),
    ("model.layers.1.self_attn.k_proj", r"layer 1 \(counted from 0\)"),
    ("model.layers.1.mlp.up_proj", r"layer 1 \(counted from 0\)"),
]
SAMPLINGS = [Sampling(), Sampling(temperature=1.0, seed=0), Sampling(repetition_penalty=1.1)]


@pytest.mark.parametrize(("name", "place"), PLACES)
def test_the_error_names_the_layer_the_precision_and_the_fix(name: str, place: str, tmp_path: Path) -> None:
    checkpoint = write_overflowing(tmp_path / "liger", name)
    convert(checkpoint, tmp_path / "package", precision=Precision(weights="fp16"))
    session = load(tmp_path / "package")
    expected = rf"not finite.* of {place} .*too large for fp16.*another precision: --precision fp32"
    for sampling in SAMPLINGS:
        session.reset()
        with pytest.raises(NotFiniteError, match=expected):
            list(session.generate("def f", sampling=sampling))
        with pytest.raises(InputError, match=expected):
            session.sample_tokens(40, sampling)
    convert(checkpoint, tmp_path / "fp32")
    assert np.isfinite(load(tmp_path / "fp32").prefill([0, 65, 66])).all()


def test_integer_weights_need_other_activations(tmp_path: Path) -> None:
    checkpoint = write_overflowing(tmp_path / "liger", "model.layers.0.mlp.down_proj")
    convert(checkpoint, tmp_path / "package", precision=Precision(weights="int8", activation_precision="fp16"))
    with pytest.raises(NotFiniteError, match=r"another precision: --activations fp32"):
        list(load(tmp_path / "package").generate("def f"))


def test_a_saved_state_may_be_the_cause_in_float32(package: Path) -> None:
    session = load(package)
    session.prefill([1, 2, 3])
    state = session.state()
    for tensor in state.tensors.values():
        tensor.fill(3e38)  # finite, but not what is computed from it
    session.load_state(state)
    with pytest.raises(NotFiniteError, match=r"layer 0 .*too large for fp32.*the saved state"):
        list(session.generate("a"))
    session.reset()
    assert list(session.generate("a", max_new_tokens=2))


def test_logits_alone_that_are_not_finite_come_from_the_head(package: Path) -> None:
    manifest = load(package).manifest
    state = load(package).state().tensors
    logits = np.zeros(260, dtype=np.float32)
    logits[7] = np.inf
    assert "of the output head was" in not_finite(manifest, state, logits).cause
    assert "of layer 1 (counted from 0) was" in not_finite(manifest, state, logits * np.nan).cause


def test_a_value_that_has_left_the_window_came_from_one_of_two_layers(package: Path) -> None:
    manifest = load(package).manifest
    state = load(package).state().tensors
    state["past_key_values.1.recurrent_state"].fill(np.nan)
    logits = np.full(260, np.nan, dtype=np.float32)
    assert "of layer 0 or 1 (counted from 0) was" in not_finite(manifest, state, logits).cause


@needs_library
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_a_fused_graph_is_refused_too(sampling: Sampling, tmp_path: Path) -> None:
    checkpoint = write_overflowing(tmp_path / "liger", "model.layers.0.mlp.down_proj")
    convert(checkpoint, tmp_path / "package", lowering="fused", precision=Precision(weights="fp16"))
    session = load(tmp_path / "package", lowering="fused")
    with pytest.raises(NotFiniteError, match=r"of layer 0 .*too large for fp16"):
        list(session.generate("def f", sampling=sampling))


@needs_library
@pytest.mark.parametrize("token", [-1, 3, 260])
def test_an_argmax_of_infinite_logits_is_not_used(token: int, tmp_path: Path) -> None:
    """Operators report such logits by a token outside the vocabulary. Older ones choose the infinite logit."""
    convert(write_liger(tmp_path / "liger", **WIDE), tmp_path / "package", lowering="fused")
    executor = load(tmp_path / "package", lowering="fused").executor
    executor.read(np.array([1, 2]))
    assert executor.argmax() == executor.last_logits().argmax()
    executor.last_logits()[3] = np.inf
    executor._outputs["most_likely"].write(np.array([[token]]))  # type: ignore[attr-defined]
    assert executor.argmax() is None
