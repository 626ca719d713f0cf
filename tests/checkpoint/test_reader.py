import json
import os
import shutil
from pathlib import Path
from time import monotonic

import pytest
import torch
from safetensors.torch import load_file, save_file

from liger_export.checkpoint import Checkpoint, expected_tensors, open_liger, write_weights
from liger_export.errors import CheckpointError, LigerExportError
from liger_export.linearize import LinearizeSettings, linearize
from tests.tiny import config_of, edit_json, load_model, write_liger


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
    (checkpoint_copy / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"gone\.safetensors is missing"):
        Checkpoint.open(checkpoint_copy)


def write_shards(checkpoint: Path, scale: float = 1.0) -> None:
    """Write an index and two shards beside ``model.safetensors``, with scaled norms."""
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["model.norm.weight"] = scale * tensors["model.norm.weight"]
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[:5], "model-00002-of-00002.safetensors": names[5:]}
    for file, listed in shards.items():
        save_file({name: tensors[name] for name in listed}, checkpoint / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, listed in shards.items() for name in listed}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))


def test_an_index_whose_shards_were_removed_is_ignored_as_by_transformers(
    checkpoint_copy: Path, tmp_path: Path
) -> None:
    model = load_model(checkpoint_copy)
    write_shards(checkpoint_copy)
    (checkpoint_copy / "model.safetensors").unlink()
    with torch.no_grad():
        model.model.norm.weight.add_(1)
    model.save_pretrained(checkpoint_copy)  # removes the shards, not the index
    assert (checkpoint_copy / "model.safetensors.index.json").is_file()
    expected = load_model(checkpoint_copy).model.norm.weight
    assert torch.equal(expected, model.model.norm.weight)
    assert torch.equal(Checkpoint.open(checkpoint_copy).read("model.norm.weight"), expected)
    (tmp_path / "written").mkdir()
    write_weights(Checkpoint.open(checkpoint_copy), {}, tmp_path / "written")
    assert [path.name for path in (tmp_path / "written").iterdir()] == ["model.safetensors"]


def test_two_sets_of_weights_are_refused_with_both_names(checkpoint_copy: Path) -> None:
    write_shards(checkpoint_copy, scale=2)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"model\.safetensors, which .*index\.json \(model-0000"):
            Checkpoint.open(checkpoint_copy)
        (checkpoint_copy / "model-00001-of-00002.safetensors").unlink(missing_ok=True)


def test_an_index_of_the_single_file_is_accepted(checkpoint_copy: Path) -> None:
    index = {"weight_map": dict.fromkeys(load_file(checkpoint_copy / "model.safetensors"), "model.safetensors")}
    (checkpoint_copy / "model.safetensors.index.json").write_text(json.dumps(index))
    check(checkpoint_copy)


def test_a_tensor_in_two_shards_is_refused(checkpoint_copy: Path) -> None:
    write_shards(checkpoint_copy)
    (checkpoint_copy / "model.safetensors").unlink()
    check(checkpoint_copy)
    shard = checkpoint_copy / "model-00002-of-00002.safetensors"
    save_file({**load_file(shard), "lm_head.weight": torch.zeros(260, 24)}, shard, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lm_head\.weight twice, in model-00001.*and model-00002"):
        Checkpoint.open(checkpoint_copy)


def test_weights_named_in_the_config_are_refused(checkpoint_copy: Path) -> None:
    shutil.copyfile(checkpoint_copy / "model.safetensors", checkpoint_copy / "other.safetensors")
    edit_json(checkpoint_copy / "config.json", transformers_weights="other.safetensors")
    with pytest.raises(CheckpointError, match=r"names other\.safetensors as the weights"):
        Checkpoint.open(checkpoint_copy)


def test_a_stored_copy_of_a_tied_head_must_equal_the_embedding(tmp_path: Path) -> None:
    checkpoint = write_liger(tmp_path / "liger", tie_word_embeddings=True)
    embedding = load_file(checkpoint / "model.safetensors")["model.embed_tokens.weight"]
    rewrite(checkpoint, {"lm_head.weight": embedding.clone()})
    check(checkpoint)
    rewrite(checkpoint, {"lm_head.weight": embedding.double()})
    check(checkpoint)

    head = embedding.clone()
    head[-1, -1] += 1e-3
    rewrite(checkpoint, {"lm_head.weight": head})
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs.*Set tie_word_embeddings to false"):
        check(checkpoint)
    edit_json(checkpoint / "config.json", tie_word_embeddings=False)
    check(checkpoint)

    edit_json(checkpoint / "config.json", tie_word_embeddings=True)
    rewrite(checkpoint, {"lm_head.weight": head[:-1]})
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs"):
        check(checkpoint)


@pytest.mark.parametrize("layers", [10**6, 2**31 - 1, 2**100])
def test_more_layers_than_tensors_are_refused_at_once(liger_checkpoint: Path, tmp_path: Path, layers: int) -> None:
    base = Path(shutil.copytree(liger_checkpoint.with_name(liger_checkpoint.name + "-base"), tmp_path / "base"))
    liger = Path(shutil.copytree(liger_checkpoint, tmp_path / "liger"))
    for directory in (base, liger):
        edit_json(directory / "config.json", num_hidden_layers=layers, use_sliding_window=True)
    start = monotonic()
    for attempt in (
        lambda: linearize(str(base), tmp_path / "output"),
        lambda: linearize(str(base), tmp_path / "output", LinearizeSettings(keep_softmax_every=2)),
        lambda: open_liger(liger),
    ):
        with pytest.raises(LigerExportError, match=rf"{layers} layers, but|num_hidden_layers is {layers}"):
            attempt()
    assert monotonic() - start < 1


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.index.json"])
def test_a_pipe_or_a_device_is_not_waited_for(checkpoint_copy: Path, name: str) -> None:
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        (checkpoint_copy / name).unlink(missing_ok=True)
        make(checkpoint_copy / name)
        with pytest.raises(CheckpointError, match=r"not a regular file|outside the checkpoint"):
            Checkpoint.open(checkpoint_copy)


@pytest.mark.parametrize("absolute", [False, True])
def test_shards_lie_beside_their_index(checkpoint_copy: Path, tmp_path: Path, absolute: bool) -> None:
    """Shards in folders gave unreadable copies, two of one name overwrote each other, any file could be read."""
    (checkpoint_copy / "part").mkdir()
    shard = (checkpoint_copy / "model.safetensors").rename(checkpoint_copy / "part" / "model.safetensors")
    name = str(shard) if absolute else "part/model.safetensors"
    (checkpoint_copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="not the name of a file beside it"):
        Checkpoint.open(checkpoint_copy)


def as_cached(checkpoint: Path, root: Path) -> Path:
    """Lay a checkpoint out as Hugging Face's cache does: a folder of links to files named by their hash."""
    snapshot, blobs = root / "models--a--b" / "snapshots" / "0", root / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(checkpoint.iterdir())):
        shutil.copyfile(file, blobs / str(number))
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", str(number)))
    return snapshot


def test_links_stay_within_a_checkpoint_or_its_cache(liger_checkpoint: Path, tmp_path: Path) -> None:
    base = as_cached(liger_checkpoint.with_name(liger_checkpoint.name + "-base"), tmp_path)
    (tmp_path / "linked").symlink_to(base)
    linearize(str(tmp_path / "linked"), tmp_path / "liger")
    assert not any(path.is_symlink() for path in (tmp_path / "liger").iterdir())
    (tmp_path / "secret").write_text("secret")
    (base / "chat_template.jinja").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja is a link to .*secret, outside the checkpoint"):
        linearize(str(base), tmp_path / "other")
    (base / "chat_template.jinja").unlink()
    (base / "model.safetensors").unlink()
    (base / "model.safetensors").symlink_to(tmp_path / "liger" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is a link"):
        linearize(str(base), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_path_of_another_machine_does_not_travel(liger_checkpoint: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(liger_checkpoint.with_name(liger_checkpoint.name + "-base"), tmp_path / "base"))
    tokenizer = json.loads((base / "tokenizer_config.json").read_text())
    edit_json(base / "config.json", _name_or_path="/home/someone/model")
    edit_json(base / "tokenizer_config.json", name_or_path="/home/someone/model")
    linearize(str(base), tmp_path / "liger")
    assert "someone" not in (tmp_path / "liger" / "config.json").read_text()
    assert json.loads((tmp_path / "liger" / "tokenizer_config.json").read_text()) == tokenizer
    edit_json(tmp_path / "liger" / "config.json", _name_or_path="/home/someone/model")
    assert "_name_or_path" not in open_liger(tmp_path / "liger").values


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("model_type", value) for value in ([], {}, 5, None)),
        *(("rms_norm_eps", value) for value in (10**400, "1", [])),
        *(("rope_parameters", value) for value in ([1], {"rope_type": []}, {"rope_theta": 10**400})),
        *(("eos_token_id", value) for value in ({}, [[]], "a")),
        ("softmax_layers", [[]]),
    ],
)
def test_a_config_with_another_value_is_an_error_of_ours(
    liger_checkpoint: Path, tmp_path: Path, field: str, value: object
) -> None:
    base = Path(shutil.copytree(liger_checkpoint.with_name(liger_checkpoint.name + "-base"), tmp_path / "base"))
    liger = Path(shutil.copytree(liger_checkpoint, tmp_path / "liger"))
    for directory in (base, liger):
        edit_json(directory / "config.json", **{field: value})
    with pytest.raises(LigerExportError):
        open_liger(liger)
    with pytest.raises(LigerExportError):
        linearize(str(base), tmp_path / "output")
