import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from liger_export.checkpoint import Checkpoint, expected_tensors
from liger_export.errors import CheckpointError
from tests.tiny import config_of, load_model


def rewrite(checkpoint: Path, edit: dict[str, torch.Tensor | None]) -> None:
    """Replace, add or (with None) remove tensors of a checkpoint's file."""
    tensors = {**load_file(checkpoint / "model.safetensors"), **edit}
    save_file(
        {name: tensor for name, tensor in tensors.items() if tensor is not None}, checkpoint / "model.safetensors"
    )


def check(checkpoint: Path) -> None:
    Checkpoint.open(checkpoint).check(config_of(checkpoint))


def test_expected_tensors_are_the_models_parameters(liger_checkpoint: Path) -> None:
    parameters = {name: tuple(value.shape) for name, value in load_model(liger_checkpoint).named_parameters()}
    assert expected_tensors(config_of(liger_checkpoint)) == parameters


def test_row_blocks_concatenate_to_the_tensor(liger_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(liger_checkpoint)
    name = "model.embed_tokens.weight"
    whole = load_file(liger_checkpoint / "model.safetensors")[name]
    assert torch.equal(checkpoint.read(name), whole)
    blocks = [checkpoint.read_rows(name, *rows) for rows in checkpoint.row_blocks(name, block_bytes=1000)]
    assert len(blocks) > 5
    assert torch.equal(torch.cat(blocks), whole)


def test_fingerprint_depends_on_values_and_not_on_sharding(checkpoint_copy: Path, tmp_path: Path) -> None:
    names = ["model.norm.weight", "model.layers.0.self_attn.q_proj.weight"]
    before = Checkpoint.open(checkpoint_copy).fingerprint(names)

    tensors = load_file(checkpoint_copy / "model.safetensors")
    shards = {"a.safetensors": names[:1], "b.safetensors": [name for name in tensors if name not in names[:1]]}
    for file, listed in shards.items():
        save_file({name: tensors[name] for name in listed}, checkpoint_copy / file)
    index = {"weight_map": {name: file for file, listed in shards.items() for name in listed}}
    (checkpoint_copy / "model.safetensors.index.json").write_text(json.dumps(index))
    (checkpoint_copy / "model.safetensors").unlink()
    check(checkpoint_copy)
    assert Checkpoint.open(checkpoint_copy).fingerprint(names) == before

    tensors[names[0]][0] += 1
    save_file({names[0]: tensors[names[0]]}, checkpoint_copy / "a.safetensors")
    assert Checkpoint.open(checkpoint_copy).fingerprint(names) != before


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        ({"model.norm.weight": None}, "lacks tensor model.norm.weight"),
        ({"model.surprise": torch.ones(1)}, "unexpected tensor model.surprise"),
        ({"model.norm.weight": torch.ones(5)}, r"shape \[5\] instead of \[24\]"),
        ({"model.norm.weight": torch.ones(24, dtype=torch.int8)}, "stored as I8"),
    ],
)
def test_missing_unexpected_and_misshaped_tensors_are_named(
    checkpoint_copy: Path, edit: dict[str, torch.Tensor | None], words: str
) -> None:
    rewrite(checkpoint_copy, edit)
    with pytest.raises(CheckpointError, match=words):
        check(checkpoint_copy)


def test_old_rotary_buffers_are_ignored(checkpoint_copy: Path) -> None:
    rewrite(checkpoint_copy, {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    check(checkpoint_copy)
    assert "model.layers.0.self_attn.rotary_emb.inv_freq" in Checkpoint.open(checkpoint_copy).tensors


def test_a_truncated_file_is_rejected(checkpoint_copy: Path) -> None:
    file = checkpoint_copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        Checkpoint.open(checkpoint_copy)


def test_pickled_weights_are_rejected(checkpoint_copy: Path) -> None:
    shutil.move(checkpoint_copy / "model.safetensors", checkpoint_copy / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickled"):
        Checkpoint.open(checkpoint_copy)


def test_a_missing_shard_is_named(checkpoint_copy: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "gone.safetensors"}}
    (checkpoint_copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"gone\.safetensors is missing"):
        Checkpoint.open(checkpoint_copy)
