from pathlib import Path

import numpy as np
import pytest
import torch

from liger_export.bench import systems
from liger_export.bench.systems import PackageSystem, TransformerSystem
from liger_export.bench.worker import measure_system
from liger_export.errors import CheckpointError, UnsupportedModelError
from liger_export.package import read_manifest
from liger_export.runtime import load
from liger_export.state import bytes_per_session
from tests.tiny import Shape, edit_json, write_base

CONTEXTS = (1, 7, 40)
TOKENS = [int(token) for token in np.random.default_rng(0).integers(1, 260, 40)]
SHAPE = Shape()
LAYERS = 2


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("bench") / "base", SHAPE)


def bytes_per_token(itemsize: int) -> int:
    return 2 * LAYERS * SHAPE.key_value_heads * SHAPE.head_dim * itemsize


def test_a_packages_memory_is_the_manifests_state_size_at_every_context(package: Path) -> None:
    system = PackageSystem(package, 1)
    expected = bytes_per_session(read_manifest(package).state)
    samples = [measure_system(system, context, 3) for context in CONTEXTS]
    assert [sample.memory_bytes for sample in samples] == [expected] * len(CONTEXTS)
    assert all(sample.prefill_seconds is not None and sample.prefill_seconds > 0 for sample in samples)


def test_a_package_continues_as_its_session_does(package: Path) -> None:
    system, session = PackageSystem(package, 1), load(package)
    system.prefill(TOKENS[:5])  # prefill starts over
    first = system.prefill(TOKENS)
    assert first == int(session.prefill(TOKENS).argmax())
    assert system.step(first) == int(session.step(first).argmax())


@pytest.mark.parametrize(("dtype", "itemsize"), [("float32", 4), ("bfloat16", 2)])
def test_a_transformers_memory_grows_by_its_keys_and_values(base: Path, dtype: str, itemsize: int) -> None:
    system = TransformerSystem(base, 1, dtype)
    for context in CONTEXTS:
        token = system.prefill(TOKENS[:context])
        assert system.memory_bytes() == context * bytes_per_token(itemsize)
        system.step(token)
        assert system.memory_bytes() == (context + 1) * bytes_per_token(itemsize)


def test_a_transformer_decodes_as_generate_does(base: Path) -> None:
    from transformers import AutoModelForCausalLM

    system = TransformerSystem(base, 1, "float32")
    chosen = [system.prefill(TOKENS)]
    while len(chosen) < 4:
        chosen.append(system.step(chosen[-1]))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    generated = model.generate(torch.tensor([TOKENS]), max_new_tokens=4, do_sample=False)
    assert chosen == generated[0, len(TOKENS) :].tolist()


def test_a_filled_cache_is_as_large_as_a_read_one_and_its_prefill_is_not_reported(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = TransformerSystem(base, 1, "float32")
    read = measure_system(system, 40, 2)
    monkeypatch.setattr(systems, "FILLED_ABOVE", 8)
    filled = measure_system(system, 40, 2)
    assert filled.memory_bytes == read.memory_bytes == 40 * bytes_per_token(4)
    assert read.prefill_seconds is not None
    assert filled.prefill_seconds is None
    assert system.memory_bytes() == 42 * bytes_per_token(4)  # tokens are decoded after it, at the right positions


def test_a_base_with_a_sliding_window_keeps_no_more_than_the_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sliding = write_base(tmp_path / "base", backbone="mistral", sliding_window=16)
    system = TransformerSystem(sliding, 1, "float32")
    read = measure_system(system, 40, 2).memory_bytes
    monkeypatch.setattr(systems, "FILLED_ABOVE", 8)
    assert measure_system(system, 40, 2).memory_bytes == read == 15 * bytes_per_token(4)


def test_a_model_without_a_kv_cache_is_refused(base: Path) -> None:
    system = TransformerSystem(base, 1, "float32")
    with pytest.raises(UnsupportedModelError, match="softmax attention"):
        system.memory_bytes()


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    damaged = write_base(tmp_path / "base")
    edit_json(damaged / "config.json", model_type="nothing_known")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        TransformerSystem(damaged, 1, "float32")
