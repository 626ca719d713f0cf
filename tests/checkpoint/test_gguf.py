"""Models in GGUF files. The reference is the checkpoint a file was made from, or transformers' own GGUF loading."""

import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.quantization_config import GgufConfig

from liger_export.checkpoint import gguf_file, open_base, open_liger
from liger_export.checkpoint.gguf import GgufModel
from liger_export.errors import CheckpointError, EnvironmentMismatchError, UnsupportedModelError
from liger_export.linearize import LinearizeSettings, linearize
from liger_export.runtime import read_tokenizer
from tests.gguf_files import BYTE_LEVEL_TOKENS, permuted, write_gguf
from tests.tiny import END_OF_TEXT, Shape, write_base

VOCABULARY = len(BYTE_LEVEL_TOKENS) + 2
SETTINGS = LinearizeSettings(window_size=16)
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {"rms_norm_eps": 1e-6},
    "llama, tied": {"tie_word_embeddings": True, "rope_theta": 100000.0},
    "llama, biases": {"attention_bias": True, "mlp_bias": True},
    "llama, one key/value head": {"num_key_value_heads": 1},
    "llama 3.2": {"rope_parameters": LLAMA3, "shape": Shape(head_dim=16)},
    "llama 3.1": {"rope_parameters": LLAMA3 | {"factor": 8.0}, "shape": Shape(head_dim=16)},
    "llama, linear": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
    "mistral": {"backbone": "mistral", "sliding_window": 32},
    "qwen2": {"backbone": "qwen2"},
    "qwen3": {"backbone": "qwen3"},
    "qwen3, tied": {"backbone": "qwen3", "tie_word_embeddings": True},
}


def write_exact_base(directory: Path, shape: Shape | None = None, **overrides: Any) -> Path:
    """Write a base whose weights are bfloat16 numbers, so that rounding does not change them."""
    write_base(directory, shape, vocab_size=VOCABULARY, **overrides)
    tensors = load_file(directory / "model.safetensors")
    rounded = {name: tensor.bfloat16().float() for name, tensor in tensors.items()}
    save_file(rounded, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def weights_of(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_gguf_file_gives_the_config_and_weights_it_was_made_from(variant: str, tmp_path: Path) -> None:
    base = write_exact_base(tmp_path / "base", **VARIANTS[variant])
    config = linearize(str(write_gguf(tmp_path / "base.gguf", base)), tmp_path / "from-gguf", SETTINGS)
    assert config == linearize(str(base), tmp_path / "liger", SETTINGS)
    written, expected = weights_of(tmp_path / "from-gguf"), weights_of(tmp_path / "liger")
    assert written.keys() == expected.keys()
    for name, tensor in written.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor.float(), expected[name]), name
    open_liger(tmp_path / "from-gguf")


@pytest.mark.parametrize("backbone", ["llama", "qwen2", "qwen3"])
def test_weights_and_logits_are_those_that_transformers_loads(backbone: str, tmp_path: Path) -> None:
    shape = Shape(head_dim=128 if backbone == "qwen3" else 32)  # transformers does not read Qwen3's head size
    base = write_base(tmp_path / "base", shape, backbone=backbone, vocab_size=VOCABULARY, hidden_size=128)
    path = write_gguf(tmp_path / "base.gguf", base, GGMLQuantizationType.F16)
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    ).eval()
    linearize(str(path), tmp_path / "liger", SETTINGS)
    written, expected = weights_of(tmp_path / "liger"), loaded.state_dict()
    assert written.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name].bfloat16()) for name, tensor in written.items())

    values = open_base(path).config_values
    model = AutoModelForCausalLM.from_config(type(loaded.config)(**values)).eval().float()
    loaded.load_state_dict({name: tensor.float() for name, tensor in written.items()})
    model.load_state_dict(loaded.state_dict())
    tokens = torch.arange(24)[None]
    assert torch.equal(model(tokens).logits, loaded(tokens).logits)


QUANTIZATIONS = [
    *("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "TQ1_0"),
    *("TQ2_0", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"),
]


@pytest.fixture(scope="module")
def wide_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose rows are a multiple of every block, 256 values."""
    shape = Shape(heads=4, key_value_heads=2, head_dim=64)
    directory = tmp_path_factory.mktemp("wide")
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1}
    return write_base(directory, shape, vocab_size=VOCABULARY, **sizes)


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_every_quantization_is_dequantized_and_rounded_once(name: str, wide_base: Path, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "base.gguf", wide_base, GGMLQuantizationType[name])
    linearize(str(path), tmp_path / "liger", SETTINGS)
    stored = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}
    written = weights_of(tmp_path / "liger")
    for expected, found in {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.0.ffn_down.weight": "model.layers.0.mlp.down_proj.weight",
        "blk.0.attn_norm.weight": "model.layers.0.input_layernorm.weight",
    }.items():
        assert torch.equal(written[found], torch.tensor(stored[expected]).bfloat16())
    query = written["model.layers.0.self_attn.q_proj.weight"].float().numpy()
    assert np.array_equal(permuted(query, 64), torch.tensor(stored["blk.0.attn_q.weight"]).bfloat16().float().numpy())


def test_rows_are_the_same_however_they_are_read(wide_base: Path, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "base.gguf", wide_base, GGMLQuantizationType.Q8_0)
    checkpoint = open_base(path).checkpoint
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.norm.weight", "lm_head.weight"):
        whole = checkpoint.read(name)
        for start, stop in [(0, 1), (63, 65), (1, 200), (128, 192)]:
            assert torch.equal(checkpoint.read_rows(name, start, stop), whole[start:stop])


def test_feature_maps_are_added_to_the_weights_of_a_gguf_file(tmp_path: Path) -> None:
    base = write_exact_base(tmp_path / "base")
    linearize(str(write_gguf(tmp_path / "base.gguf", base)), tmp_path / "liger", LinearizeSettings(mixer="lolcats"))
    shards = sorted(path.name for path in (tmp_path / "liger").glob("*.safetensors"))
    assert shards == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    first = load_file(tmp_path / "liger" / shards[0])
    assert {name: tensor.float().tolist() for name, tensor in first.items()} == {
        name: tensor.tolist() for name, tensor in weights_of(base).items()
    }
    open_liger(tmp_path / "liger")


def test_tokenizer_chat_template_and_ends_of_text_are_carried_over(tmp_path: Path) -> None:
    base = write_exact_base(tmp_path / "base")
    template = "{% for message in messages %}{{ message['content'] + '\n' }}{% endfor %}é"
    keys = {"tokenizer.chat_template": template, "tokenizer.ggml.eot_token_id": 5, "tokenizer.ggml.eom_token_id": 7}
    config = linearize(str(write_gguf(tmp_path / "base.gguf", base, keys=keys)), tmp_path / "liger", SETTINGS)
    assert (config.bos_token_id, config.eos_token_ids) == (0, (0, 5, 7))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "liger")
    assert tokenizer.chat_template == template
    assert (tokenizer.bos_token, tokenizer.eos_token) == (END_OF_TEXT, END_OF_TEXT)
    text = f"hello the 123{END_OF_TEXT}x<mark>"
    assert tokenizer(text)["input_ids"] == read_tokenizer(tmp_path / "liger").encode(text).ids
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == "hello the 123x<mark>"


def test_a_directory_with_one_gguf_file_is_a_base(tmp_path: Path) -> None:
    base = write_exact_base(tmp_path / "base")
    (tmp_path / "models").mkdir()
    write_gguf(tmp_path / "models" / "a.gguf", base)
    linearize(str(tmp_path / "models"), tmp_path / "liger", SETTINGS)
    write_gguf(tmp_path / "models" / "b.gguf", base)
    with pytest.raises(CheckpointError, match=r"2 GGUF files: a.gguf, b.gguf. Pass one of them, such as .*/a.gguf"):
        linearize(str(tmp_path / "models"), tmp_path / "other", SETTINGS)
    write_gguf(base / "same.gguf", base)  # beside safetensors, which linearize prefers
    linearize(str(base), tmp_path / "other", SETTINGS)
    assert weights_of(tmp_path / "other")["model.norm.weight"].dtype == torch.float32


def test_a_file_of_the_hub_is_downloaded_by_name_or_as_the_only_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(tmp_path / "a.gguf", write_exact_base(tmp_path / "base"))
    (tmp_path / "snapshot").mkdir()
    names = ["README.md", "a.gguf"]
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path / "snapshot"))
    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda repository: names)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repository, name: str(tmp_path / name))
    linearize("owner/name", tmp_path / "only", SETTINGS)
    names.append("b.gguf")
    linearize("owner/name:a.gguf", tmp_path / "named", SETTINGS)
    with pytest.raises(CheckpointError, match=r"2 GGUF files: a.gguf, b.gguf. Pass .* such as owner/name:a.gguf"):
        linearize("owner/name", tmp_path / "neither", SETTINGS)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"general.type": "adapter"}, "contains a adapter"),
        ({"split.count": 3}, "one of 3 parts.*gguf-split --merge"),
        ({"llama.rope.dimension_count": 4}, "rope.dimension_count 4, but heads of 8"),
        ({"llama.attention.value_length": 4}, "value_length 4, but heads of 8"),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}, "'yarn'.*without context extension"),
        ({"llama.expert_count": 8}, "llama.expert_count = 8"),
        ({"llama.logit_scale": 0.25}, "llama.logit_scale = 0.25"),
        ({"llama.attention.scale": 0.1}, "llama.attention.scale"),
        ({"llama.some_new_setting": True}, "llama.some_new_setting = True"),
        ({"llama.block_count": 4_000_000_000}, "4,000,000,000 layers"),
        ({"llama.block_count": 3}, "lacks tensor"),
        ({"llama.block_count": 1}, "unexpected tensor"),
        ({"llama.feed_forward_length": 41}, r"shape \[40, 24\] instead of \[41, 24\]"),
        ({"llama.attention.layer_norm_rms_epsilon": None}, "has no llama.attention.layer_norm_rms_epsilon"),
        ({"llama.attention.head_count": [4, 4]}, r"invalid llama.attention.head_count: \[4, 4\]"),
        ({"tokenizer.ggml.model": "bert"}, "kind 'bert'"),
        ({"tokenizer.ggml.pre": None}, "'default'.*Supported: llama-bpe"),
        ({"tokenizer.ggml.pre": "unheard-of"}, "'unheard-of'"),
        ({"tokenizer.ggml.merges": ["a b", "x yy"]}, "merges 'a b'"),
        ({"tokenizer.ggml.tokens": ["a", "b"]}, "2 tokens"),
        ({"tokenizer.ggml.eos_token_id": 100_000}, "eos_token_id 100000"),
    ],
)
def test_settings_that_would_give_another_model_are_refused(keys: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "base.gguf", write_exact_base(tmp_path / "base"), keys=keys)
    with pytest.raises((CheckpointError, UnsupportedModelError), match=words) as caught:
        linearize(str(path), tmp_path / "liger", SETTINGS)
    assert str(path) in caught.value.cause
    assert not (tmp_path / "liger").exists()


def test_sizes_are_compared_with_the_tensors_before_feature_maps_of_that_size_are_made(tmp_path: Path) -> None:
    keys = {"llama.attention.head_count": 40_000_000}
    path = write_gguf(tmp_path / "base.gguf", write_exact_base(tmp_path / "base"), keys=keys)
    with pytest.raises(CheckpointError, match=r"q_proj.weight has shape \[32, 24\] instead of \[320000000, 24\]"):
        linearize(str(path), tmp_path / "liger", LinearizeSettings(mixer="lolcats"))


@pytest.mark.parametrize("name", ["rope_freqs.weight", "blk.0.ffn_gate_inp.weight", "blk.0.attn_q_norm.weight"])
def test_tensors_of_another_model_are_refused_by_name(name: str, tmp_path: Path) -> None:
    base, extra = write_exact_base(tmp_path / "base"), np.full(4, 3.0, np.float32)
    path = write_gguf(tmp_path / "base.gguf", base, tensors={name: extra})
    with pytest.raises(UnsupportedModelError, match=name):
        linearize(str(path), tmp_path / "liger", SETTINGS)


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "base.gguf", write_exact_base(tmp_path / "base"))
    path.write_bytes(path.read_bytes().replace(b"llama", b"gemma"))
    with pytest.raises(UnsupportedModelError, match=r"architecture 'gemma'.*Llama, Mistral, Qwen2 or Qwen3"):
        GgufModel.open(path)


def test_a_missing_gguf_package_is_reported_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf(tmp_path / "base.gguf", write_exact_base(tmp_path / "base"))
    monkeypatch.setitem(sys.modules, "gguf", None)
    gguf_file._quantizations.cache_clear()
    with pytest.raises(EnvironmentMismatchError, match=r"needs gguf.*pip install"):
        GgufModel.open(path)
