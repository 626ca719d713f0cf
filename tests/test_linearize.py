import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from liger_export.checkpoint import open_liger
from liger_export.errors import CheckpointError, InputError, LigerExportError, OutputError, UnsupportedModelError
from liger_export.linearize import LinearizeSettings, linearize
from tests.tiny import config_of, edit_json, write_base


def test_weights_and_tokenizer_are_copied_byte_for_byte(tmp_path: Path) -> None:
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


def test_lolcats_feature_maps_are_added_as_the_identity(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    linearize(str(base), tmp_path / "liger", LinearizeSettings(mixer="lolcats"))
    shards = sorted(path.name for path in (tmp_path / "liger").glob("*.safetensors"))
    assert shards == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert (tmp_path / "liger" / shards[0]).read_bytes() == (base / "model.safetensors").read_bytes()
    learned = load_file(tmp_path / "liger" / shards[1])
    assert len(learned) == 2 * 3
    assert torch.equal(learned["model.layers.1.self_attn.key_map"], torch.eye(8).repeat(4, 1, 1))
    factor = learned["model.layers.0.self_attn.window_factors"].sigmoid()
    torch.testing.assert_close(factor, torch.full((4,), 0.1))
    open_liger(tmp_path / "liger")


def test_mixer_options_are_written_and_default_to_the_papers_values(tmp_path: Path) -> None:
    base = str(write_base(tmp_path / "base"))
    settings = LinearizeSettings(mixer="gsa", num_slots=4, gate_normalizer=8.0, recurrent_weight=0.25, window_size=16)
    config = linearize(base, tmp_path / "gsa", settings)
    assert (config.num_slots, config.gate_normalizer, config.recurrent_weight, config.window_size) == (4, 8.0, 0.25, 16)
    config = linearize(base, tmp_path / "default", LinearizeSettings(mixer="gsa"))
    assert (config.num_slots, config.gate_normalizer, config.recurrent_weight, config.window_size) == (8, 16.0, 0.5, 64)


@pytest.mark.parametrize(
    ("base", "settings", "layers", "window"),
    [
        ({}, LinearizeSettings(keep_softmax_every=3), (2, 5, 8), 256),  # bounded by the model's context
        ({}, LinearizeSettings(keep_softmax_every=8, softmax_window=48), (7,), 48),
        ({"sliding_window": 100}, LinearizeSettings(keep_softmax_every=8), (7,), 100),  # bounded by the base's window
    ],
)
def test_every_nth_layer_keeps_softmax_in_a_bounded_window(
    base: dict[str, int], settings: LinearizeSettings, layers: tuple[int, ...], window: int, tmp_path: Path
) -> None:
    write_base(tmp_path / "base", backbone="mistral" if base else "llama", num_hidden_layers=9, **base)
    config = linearize(str(tmp_path / "base"), tmp_path / "liger", settings)
    assert (config.softmax_layers, config.softmax_window) == (layers, window)
    assert [config.layer_window(layer) for layer in range(9)].count(window) == len(layers)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (LinearizeSettings(mixer="gla", num_slots=4), "gla has no num_slots.*mixer that has it: gsa"),
        (LinearizeSettings(mixer="lolcats", gate_normalizer=8.0), "lolcats has no gate_normalizer.*gla, gsa"),
        (LinearizeSettings(mixer="gsa", num_slots=3), r"does not divide head_dim \(8\).*1, 2, 4, 8"),
        (LinearizeSettings(recurrent_weight=1.0), "between 0 and 1"),
        (LinearizeSettings(keep_softmax_every=1), "from 2 to 2"),
        (LinearizeSettings(keep_softmax_every=9), "from 2 to 2"),
        (LinearizeSettings(softmax_window=9), "no layer keeps softmax attention"),
        (LinearizeSettings(window_size=0), "window_size is 0"),
    ],
)
def test_contradictory_settings_are_refused(settings: LinearizeSettings, words: str, tmp_path: Path) -> None:
    with pytest.raises(LigerExportError, match=words):
        linearize(str(write_base(tmp_path / "base")), tmp_path / "liger", settings)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.mark.parametrize("name", ["gate_normalizer", "recurrent_weight"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_invalid_numbers_are_refused_by_the_name_of_their_setting(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"^{name} is {value}. It must be a number greater than zero"):
        LinearizeSettings(**{name: value})


def test_a_window_wider_than_that_of_the_base_is_refused(tmp_path: Path) -> None:
    base = str(write_base(tmp_path / "base", backbone="mistral", sliding_window=32))
    with pytest.raises(InputError, match=r"sliding window of 32 keys in layer 0.*at most 32"):
        linearize(base, tmp_path / "liger", LinearizeSettings(window_size=64))
    settings = LinearizeSettings(window_size=8, keep_softmax_every=2, softmax_window=64)
    with pytest.raises(InputError, match="softmax_window of at most 32"):
        linearize(base, tmp_path / "liger", settings)
    linearize(base, tmp_path / "liger", LinearizeSettings(window_size=32))


def test_a_checkpoint_without_its_feature_maps_is_refused_with_the_fix(tmp_path: Path) -> None:
    linearize(str(write_base(tmp_path / "base")), tmp_path / "liger", LinearizeSettings(mixer="lolcats"))
    shutil.copyfile(tmp_path / "base" / "model.safetensors", tmp_path / "liger" / "model.safetensors")
    for path in (tmp_path / "liger").glob("model*0*"):
        path.unlink()
    (tmp_path / "liger" / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match=r"query_map.*linearize the base again"):
        open_liger(tmp_path / "liger")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "gpt2"}, "Supported: llama"),
        ({"model_type": "liger_gla"}, "already a Liger model"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "yarn.*without context extension"),
    ],
)
def test_unsupported_bases_leave_no_output(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    base = write_base(tmp_path / "base")
    edit_json(base / "config.json", **changes)
    with pytest.raises(UnsupportedModelError, match=words):
        linearize(str(base), tmp_path / "liger")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_path_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
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
    with pytest.raises(OutputError, match="already exists"):
        linearize(str(base), tmp_path / "liger")
    with pytest.raises(OutputError, match="is, or contains, an input"):
        linearize(str(base), base, overwrite=True)
    assert config_of(tmp_path / "liger").window_size == 64


def test_a_base_whose_tied_head_differs_is_refused(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")  # an untied model ...
    edit_json(base / "config.json", tie_word_embeddings=True)  # ... with the config of a tied one
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs.*Set tie_word_embeddings to false"):
        linearize(str(base), tmp_path / "liger")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
