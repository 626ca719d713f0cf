"""Small GGUF files for tests, written with the gguf package in the way of llama.cpp's converter."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from safetensors.torch import load_file

from liger_export.config import inverse_frequencies, read_config_json, read_rope
from tests.tiny import END_OF_TEXT

BYTES = [*range(33, 127), *range(161, 173), *range(174, 256)]
ALPHABET = [*map(chr, BYTES), *(chr(256 + index) for index in range(256 - len(BYTES)))]
# Merges that show where a rule splits text: Ġ is a space, Ċ a line feed, č a carriage return, ĉ a tab.
MERGES = [
    *("Ġ Ġ", "Ċ Ċ", "č Ċ", "ĉ ĉ", "ĠĠ ĠĠ", "1 2", "12 3", "3 4", "Ġ 1", "h e", "l l", "he ll"),
    *("hell o", "Ġ hello", "Ġ t", "Ġt he", "' s", "' S", "n '", "' t", "s '", ". Ċ", "! !", "Ġ !"),
    *("A b", "a B", "Ì ģ", "e Ì", "/ Ċ", "x /", "ĉ a", ". a", "( a", "Ġ Ċ", "1 a", "a 1"),
]
BYTE_LEVEL_TOKENS = [END_OF_TEXT, *ALPHABET, *(merge.replace(" ", "") for merge in MERGES), "whole", "<mark>"]
SPECIAL_TYPES = {END_OF_TEXT: TokenType.CONTROL, "<mark>": TokenType.USER_DEFINED}

SENTENCEPIECE_TOKENS = [
    *("<unk>", "<s>", "</s>"),
    *(f"<0x{byte:02X}>" for byte in range(256)),
    *("▁▁", "▁t", "he", "▁the", "ll", "hell", "hello", "▁hello", "er", "▁h", "12", "▁the▁", "aa", "aaaa"),
    *"▁thelorw1234567890.,!'abcdsx",
]
SENTENCEPIECE_TYPES = {"<unk>": TokenType.UNKNOWN, "<s>": TokenType.CONTROL, "</s>": TokenType.CONTROL}

MODULES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
WHOLE_MODEL = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def write_gguf(
    path: Path,
    base: Path,
    quantization: GGMLQuantizationType = GGMLQuantizationType.F32,
    *,
    tokenizer: str = "smollm",
    keys: Mapping[str, Any] | None = None,
    tensors: Mapping[str, npt.NDArray[np.float32]] | None = None,
) -> Path:
    """Write a checkpoint directory as a GGUF file.

    Args:
        path: file to write.
        base: the checkpoint.
        quantization: type of the matrices. Types that gguf cannot write get random bytes.
        tokenizer: rule that splits text, or ``sentencepiece``.
        keys: further metadata, or other values; None omits a key.
        tensors: further tensors.
    """
    config = read_config_json(base)
    architecture = "llama" if config["model_type"] == "mistral" else config["model_type"]
    writer = GGUFWriter(str(path), architecture)
    tokens = sentencepiece_metadata if tokenizer == "sentencepiece" else byte_level_metadata
    metadata = config_metadata(config, architecture) | tokens(config["vocab_size"], tokenizer) | dict(keys or {})
    for key, value in metadata.items():
        add(writer, key, value)
    for name, tensor in load_file(base / "model.safetensors").items():
        if name == "lm_head.weight" and config["tie_word_embeddings"]:
            continue
        values = tensor.float().numpy()
        if architecture == "llama" and (".q_proj." in name or ".k_proj." in name):
            values = permuted(values, config["head_dim"])
        add_tensor(writer, gguf_name(name), values, quantization)
    rope = read_rope(config)
    if rope.rope_type == "llama3":
        plain = type(rope)(rope.theta)
        factors = inverse_frequencies(plain, config["head_dim"]) / inverse_frequencies(rope, config["head_dim"])
        writer.add_tensor("rope_freqs.weight", factors)
    for name, values in (tensors or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def config_metadata(config: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    rope = read_rope(config)
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    values = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.freq_base": rope.theta,
    }
    if architecture != "qwen2":
        values |= {"attention.key_length": head_dim, "attention.value_length": head_dim}
    if architecture == "llama":
        values |= {"rope.dimension_count": head_dim, "vocab_size": config["vocab_size"]}
    if rope.rope_type == "linear":
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": rope.factor}
    if config["model_type"] == "mistral":
        values["attention.sliding_window"] = config["sliding_window"]
    return {f"{architecture}.{key}": value for key, value in values.items()}


def byte_level_metadata(vocab_size: int, rule: str) -> dict[str, Any]:
    padding = [f"[PAD{index}]" for index in range(len(BYTE_LEVEL_TOKENS), vocab_size)]
    tokens = [*BYTE_LEVEL_TOKENS, *padding]
    types = [int(SPECIAL_TYPES.get(token, TokenType.NORMAL)) for token in BYTE_LEVEL_TOKENS]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": rule,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types + [int(TokenType.UNUSED)] * len(padding),
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
    }


def sentencepiece_metadata(vocab_size: int, rule: str) -> dict[str, Any]:
    padding = [f"[PAD{index}]" for index in range(len(SENTENCEPIECE_TOKENS), vocab_size)]
    normal = [TokenType.BYTE if token.startswith("<0x") else TokenType.NORMAL for token in SENTENCEPIECE_TOKENS]
    types = [int(SENTENCEPIECE_TYPES.get(t, kind)) for t, kind in zip(SENTENCEPIECE_TOKENS, normal, strict=True)]
    tokens = [*SENTENCEPIECE_TOKENS, *padding]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types + [int(TokenType.UNUSED)] * len(padding),
        "tokenizer.ggml.scores": [-float(max(index - 258, 0)) for index in range(len(tokens))],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def add(writer: GGUFWriter, key: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, list):
        writer.add_array(key, value)
        return
    methods = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    methods[type(value)](key, value)


def add_tensor(
    writer: GGUFWriter, name: str, values: npt.NDArray[np.float32], quantization: GGMLQuantizationType
) -> None:
    """Add a tensor. Vectors stay float32, as in llama.cpp."""
    if values.ndim == 1:
        writer.add_tensor(name, values)
        return
    try:
        stored = gguf.quantize(values, quantization)
    except NotImplementedError:
        block, nbytes = gguf.GGML_QUANT_SIZES[quantization]
        generator = np.random.default_rng(len(name))
        shape = (values.shape[0], values.shape[1] // block * nbytes)
        stored = generator.integers(0, 256, shape, np.uint8) & 0xBF  # without large exponents: finite float16 scales
    writer.add_tensor(name, stored, raw_dtype=quantization)


def permuted(values: npt.NDArray[np.float32], head_dim: int) -> npt.NDArray[np.float32]:
    """Rows in llama.cpp's order, as its converter permutes them."""
    heads = values.shape[0] // head_dim
    halves = values.reshape(heads, 2, head_dim // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))


def gguf_name(name: str) -> str:
    if name in WHOLE_MODEL:
        return WHOLE_MODEL[name]
    _, _, layer, rest = name.split(".", 3)
    module, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{MODULES[module]}.{kind}"
