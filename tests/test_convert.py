import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel

from liger_export.convert import convert
from liger_export.errors import AdapterError, CheckpointError, OutputError
from liger_export.package import read_manifest
from liger_export.package.manifest import FORMAT_VERSION
from liger_export.runtime import load
from tests.tiny import Shape, edit_json, load_model, relative_l2, write_liger

TOKENS = [int(token) for token in np.random.default_rng(0).integers(1, 260, 40)]


def package_logits(package: Path) -> torch.Tensor:
    return torch.from_numpy(load(package).all_logits(TOKENS))


@torch.no_grad()
def torch_logits(checkpoint: Path, *adapters: Path) -> torch.Tensor:
    model = load_model(checkpoint)
    for adapter in adapters:
        model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    logits: torch.Tensor = model(torch.tensor([TOKENS])).logits[0]
    return logits


def test_package_computes_what_the_checkpoint_computes(package: Path, liger_checkpoint: Path) -> None:
    assert relative_l2(package_logits(package), torch_logits(liger_checkpoint)) < 1e-5


def test_adapters_are_merged(liger_checkpoint: Path, adapter: Path, tmp_path: Path) -> None:
    manifest = convert(liger_checkpoint, tmp_path / "package", adapters=(adapter,))
    expected = torch_logits(liger_checkpoint, adapter)
    assert relative_l2(package_logits(tmp_path / "package"), expected) < 1e-5
    assert relative_l2(torch_logits(liger_checkpoint), expected) > 1e-2
    assert [(entry["name"], entry["base_verified"]) for entry in manifest.adapters] == [("adapter", True)]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_biases_and_tying_survive(tmp_path: Path, tied: bool, bias: bool) -> None:
    checkpoint = write_liger(
        tmp_path / "liger", Shape(6, 3, 24, 5), tie_word_embeddings=tied, attention_bias=bias, mlp_bias=bias
    )
    fill_biases(checkpoint)
    convert(checkpoint, tmp_path / "package")
    assert relative_l2(package_logits(tmp_path / "package"), torch_logits(checkpoint)) < 1e-5


def fill_biases(checkpoint: Path) -> None:
    """Give biases random values: they are initialized to zero, which would hide a missing one."""
    model = load_model(checkpoint)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    model.save_pretrained(checkpoint)


def test_half_precision_checkpoints_convert(tmp_path: Path) -> None:
    checkpoint = write_liger(tmp_path / "liger")
    load_model(checkpoint, torch.bfloat16).save_pretrained(checkpoint)
    convert(checkpoint, tmp_path / "package")
    assert relative_l2(package_logits(tmp_path / "package"), torch_logits(checkpoint)) < 1e-5


def test_manifest_describes_the_package(package: Path, liger_checkpoint: Path) -> None:
    values = json.loads((package / "manifest.json").read_text())
    assert values["format_version"] == FORMAT_VERSION
    assert (values["precision"]["weights"], list(values["graphs"]), values["adapters"]) == ("fp32", ["stock"], [])
    assert values["source"]["name"] == "liger"
    assert set(values["source"]["files"]) == {"config.json", "model.safetensors"}
    assert set(values["graphs"]["stock"]["opsets"]) == {"ai.onnx", "com.microsoft", "liger"}
    assert values["state"]["bytes_per_session"] == sum(tensor["bytes"] for tensor in values["state"]["tensors"])
    assert set(values["files"]) == {path.name for path in package.iterdir()} - {"manifest.json", "parity.json"}
    assert read_manifest(package).config == json.loads((liger_checkpoint / "config.json").read_text())


def test_end_tokens_come_from_the_generation_config(checkpoint_copy: Path, tmp_path: Path) -> None:
    edit_json(checkpoint_copy / "generation_config.json", eos_token_id=[0, 105])
    manifest = convert(checkpoint_copy, tmp_path / "package")
    assert manifest.model_config.eos_token_ids == (0, 105)


def test_adapter_of_another_model_leaves_no_output(adapter: Path, tmp_path: Path) -> None:
    other = write_liger(tmp_path / "other", seed=9)
    with pytest.raises(AdapterError):
        convert(other, tmp_path / "package", adapters=(adapter,))
    assert not list(tmp_path.glob("*package*"))


def test_checkpoint_without_tokenizer_is_refused(checkpoint_copy: Path, tmp_path: Path) -> None:
    (checkpoint_copy / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="tokenizer"):
        convert(checkpoint_copy, tmp_path / "package")


def test_damaged_tokenizer_is_refused_before_any_work(checkpoint_copy: Path, tmp_path: Path) -> None:
    (checkpoint_copy / "tokenizer.json").write_text('{"model": 5}')
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read"):
        convert(checkpoint_copy, tmp_path / "package")
    assert not (tmp_path / "package").exists()


def test_full_disk_leaves_no_output(liger_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nearly_full = shutil._ntuple_diskusage(10**9, 10**9, 1000)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: nearly_full)
    with pytest.raises(OutputError, match="free"):
        convert(liger_checkpoint, tmp_path / "package")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_killed_convert_leaves_no_package_and_the_next_one_works(
    liger_checkpoint: Path, tmp_path: Path, how: signal.Signals
) -> None:
    output = tmp_path / "package"
    command = [sys.executable, "-m", "liger_export", "convert", str(liger_checkpoint), "-o", str(output)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob(".package.partial-*")):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, how)
    try:
        process.wait(timeout=0.7)
    except subprocess.TimeoutExpired:  # Python ignores exceptions raised in a destructor: interrupt again, as users do
        os.kill(process.pid, how)
    assert process.wait() != 0
    assert not output.exists()
    if how != signal.SIGKILL:
        assert list(tmp_path.iterdir()) == []
    convert(liger_checkpoint, output)
    assert [path.name for path in tmp_path.iterdir()] == ["package"]
    load(output)
