import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from liger_export.errors import CheckpointError, OutputError, UnsupportedModelError
from liger_export.linearize import LinearizeSettings, linearize
from tests.tiny import config_of, edit_json, write_base


def test_weights_and_tokenizer_are_the_bases_own_bytes(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    config = linearize(str(base), tmp_path / "liger", LinearizeSettings(window_size=16))
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "liger" / name).read_bytes() == (base / name).read_bytes()
    assert config == config_of(tmp_path / "liger")
    assert (config.model_type, config.window_size, config.gate_normalizer) == ("liger_gla", 16, 16.0)
    written = json.loads((tmp_path / "liger" / "config.json").read_text())
    assert written["architectures"] == ["LigerGLAForCausalLM"]


def test_sharded_checkpoints_keep_their_shards(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    from transformers import LlamaForCausalLM

    LlamaForCausalLM.from_pretrained(base).save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    linearize(str(tmp_path / "sharded"), tmp_path / "liger")
    shards = sorted(path.name for path in (tmp_path / "liger").glob("*.safetensors"))
    assert len(shards) > 1
    assert shards == sorted(path.name for path in (tmp_path / "sharded").glob("*.safetensors"))
    names = set().union(*(load_file(tmp_path / "liger" / shard) for shard in shards))
    assert names == set(load_file(base / "model.safetensors"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "gpt2"}, "Supported: llama"),
        ({"model_type": "liger_gla"}, "Liger model already"),
        ({"hidden_act": "gelu"}, "gelu"),
    ],
)
def test_unsupported_bases_leave_no_output(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    base = write_base(tmp_path / "base")
    edit_json(base / "config.json", **changes)
    with pytest.raises(UnsupportedModelError, match=words):
        linearize(str(base), tmp_path / "liger")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a directory"):
        linearize(str(tmp_path / "nowhere"), tmp_path / "liger")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        linearize(str(tmp_path / "empty"), tmp_path / "liger")


def test_unknown_mixer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="Supported: gla"):
        linearize(str(write_base(tmp_path / "base")), tmp_path / "liger", LinearizeSettings(mixer="mamba"))


def test_existing_output_is_kept(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    linearize(str(base), tmp_path / "liger")
    with pytest.raises(OutputError, match="exists already"):
        linearize(str(base), tmp_path / "liger")
    with pytest.raises(OutputError, match="is an input"):
        linearize(str(base), base, overwrite=True)
    assert config_of(tmp_path / "liger").window_size == 64
