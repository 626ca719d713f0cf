import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from peft import PeftModel
from safetensors.torch import load_file, save_file

from liger_export.convert import convert
from liger_export.errors import AdapterError, CheckpointError, OutputError, PackageError, QuantizationError
from liger_export.files import TOOL_USE_TEMPLATE
from liger_export.linearize import linearize
from liger_export.package import read_manifest
from liger_export.package.manifest import FORMAT_VERSION
from liger_export.precision import Calibration, Precision
from liger_export.runtime import Sampling, load
from tests.cells import slow_except
from tests.tiny import Shape, edit_json, load_model, relative_l2, write_base, write_liger

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


@pytest.mark.slow
@pytest.mark.parametrize(("tied", "bias"), slow_except([(True, True)], product([False, True], repeat=2)))
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_end_tokens_come_from_the_generation_config(checkpoint_copy: Path, tmp_path: Path) -> None:
    edit_json(checkpoint_copy / "generation_config.json", eos_token_id=[0, 105])
    manifest = convert(checkpoint_copy, tmp_path / "package")
    assert manifest.model_config.eos_token_ids == (0, 105)


def test_templates_and_generation_defaults_travel_from_the_base_to_the_package(tmp_path: Path) -> None:
    base, names = write_base(tmp_path / "base"), ("chat_template.jinja", TOOL_USE_TEMPLATE, "generation_config.json")
    (base / TOOL_USE_TEMPLATE).parent.mkdir()
    for name in names[:2]:
        (base / name).write_text(name)
    edit_json(base / "generation_config.json", do_sample=True, top_k=7)
    linearize(str(base), tmp_path / "liger")
    manifest = convert(tmp_path / "liger", tmp_path / "package")
    for name in names:
        assert (tmp_path / "package" / name).read_bytes() == (base / name).read_bytes()
    assert set(names) <= manifest.files.keys()
    session = load(tmp_path / "package", verify=True)
    assert session.defaults.sampling == Sampling(temperature=1.0, top_k=7)
    assert session.chat_template is not None
    message = [{"role": "user", "content": "x"}]
    assert session.chat_template.render(message, tools=[]) == TOOL_USE_TEMPLATE
    (tmp_path / "package" / "generation_config.json").write_text("{}")
    with pytest.raises(PackageError, match="was truncated"):
        load(tmp_path / "package")


def test_generation_defaults_out_of_range_are_refused_before_any_work(checkpoint_copy: Path, tmp_path: Path) -> None:
    edit_json(checkpoint_copy / "generation_config.json", top_p=1.5)
    with pytest.raises(CheckpointError, match=r"generation_config\.json: top_p is 1\.5"):
        convert(checkpoint_copy, tmp_path / "package")
    assert not (tmp_path / "package").exists()


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


@pytest.mark.slow
@pytest.mark.parametrize("how", slow_except([signal.SIGKILL], [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]))
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


WIDE = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 8, "num_key_value_heads": 4}  # for blocks
DOWN_PROJ = "model.layers.1.mlp.down_proj.weight"
METHODS = [("fp32", "rtn"), ("fp16", "rtn"), ("int4", "rtn"), ("int8", "k-quant"), ("int4", "gptq")]


@pytest.fixture(scope="module")
def wide_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_liger(tmp_path_factory.mktemp("wide") / "liger", **WIDE)


def with_value(checkpoint: Path, directory: Path, name: str, value: float) -> Path:
    """Copy a checkpoint and set the last value of a tensor."""
    copy = Path(shutil.copytree(checkpoint, directory))
    tensors = load_file(copy / "model.safetensors")
    tensors[name].view(-1)[-1] = value
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.0.input_layernorm.weight", DOWN_PROJ])
@pytest.mark.parametrize(("weights", "method"), METHODS)
def test_weights_that_are_not_finite_are_refused_by_name(
    weights: str, method: str, name: str, value: float, wide_checkpoint: Path, random_text: Path, tmp_path: Path
) -> None:
    checkpoint = with_value(wide_checkpoint, tmp_path / "liger", name, value)
    calibration = Calibration(random_text) if method == "gptq" else None
    precision = Precision(weights=weights, method=method)
    with pytest.raises(CheckpointError, match=rf"{name} in .*model\.safetensors contains NaN or infinity"):
        convert(checkpoint, tmp_path / "package", precision=precision, calibration=calibration)
    assert [path.name for path in tmp_path.iterdir()] == ["liger"]


@pytest.mark.parametrize("value", [float("nan"), 1e38])  # 1e38 overflows in B A
def test_an_adapter_that_makes_weights_infinite_is_refused(
    value: float, liger_checkpoint: Path, adapter: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    factors = load_file(copy / "adapter_model.safetensors")
    name = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"
    factors[name].fill_(value)
    factors[name.replace("lora_B", "lora_A")].fill_(100)
    save_file(factors, copy / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=r"adapter changes model.layers.1.self_attn.v_proj.weight to NaN or inf"):
        convert(liger_checkpoint, tmp_path / "package", adapters=(copy,), precision=Precision(weights="fp16"))
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize(
    ("precision", "largest"),
    [
        (Precision(weights="fp16"), "100000"),
        (Precision(weights="int4", activation_precision="fp16"), "1000"),
        (Precision(weights="int8", symmetric=True, activation_precision="fp16"), "100000"),
        (Precision(weights="int4", method="k-quant", activation_precision="fp16"), "[19]"),
        (Precision(weights="int8", method="gptq", activation_precision="fp16"), "[19]"),
    ],
)
def test_values_beyond_float16_are_refused_with_the_tensor_and_the_value(
    precision: Precision, largest: str, wide_checkpoint: Path, random_text: Path, tmp_path: Path
) -> None:
    checkpoint = with_value(wide_checkpoint, tmp_path / "liger", DOWN_PROJ, 1e5)
    calibration = Calibration(random_text) if precision.method == "gptq" else None
    message = rf"{DOWN_PROJ} has values up to {largest}.*, which float16 cannot represent\. Use bf16 or fp32"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(QuantizationError, match=message):
            convert(checkpoint, tmp_path / "package", precision=precision, calibration=calibration)
    assert [path.name for path in tmp_path.iterdir()] == ["liger"]


def test_large_values_are_kept_in_float32(wide_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = with_value(wide_checkpoint, tmp_path / "liger", DOWN_PROJ, 1e5)
    convert(checkpoint, tmp_path / "package")
    weights = onnx.load(tmp_path / "package" / "model.onnx").graph.initializer
    (stored,) = (numpy_helper.to_array(weight) for weight in weights if weight.name == DOWN_PROJ)
    expected = load_file(checkpoint / "model.safetensors")[DOWN_PROJ].numpy()
    assert np.abs(expected).max() == 1e5
    assert np.array_equal(stored, expected)


def test_the_largest_values_of_float16_are_kept(wide_checkpoint: Path, tmp_path: Path) -> None:
    name = "model.norm.weight"
    last = with_value(wide_checkpoint, tmp_path / "last", name, 65519)  # rounds to 65504
    convert(last, tmp_path / "package", precision=Precision(weights="fp16"))
    beyond = with_value(wide_checkpoint, tmp_path / "beyond", name, -65520)  # rounds to infinity
    with pytest.raises(QuantizationError, match="up to 65520, which float16"):
        convert(beyond, tmp_path / "other", precision=Precision(weights="fp16"))
