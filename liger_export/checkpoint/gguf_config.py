"""The ``config.json`` of a model in a GGUF file, and the names of its tensors.

A key or tensor that changes the computation and is not known here is refused. llama.cpp has no separate architecture
for Mistral: its files say ``llama``. They are read as Llama, whose computation is the same, or as Mistral if the file
has a sliding window.
"""

import re
from typing import Any

import numpy as np
import numpy.typing as npt

from liger_export.checkpoint.gguf_file import DOWNLOAD, GgufFile
from liger_export.checkpoint.gguf_metadata import Metadata
from liger_export.config import RopeConfig, inverse_frequencies
from liger_export.errors import CheckpointError, UnsupportedModelError
from liger_export.precision import EMBEDDING, LM_HEAD

__all__ = ["ROPE_FACTORS", "gguf_config_values", "tensor_name"]

ARCHITECTURES = ("llama", "qwen2", "qwen3")
CLASSES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
ROPE_FACTORS = "rope_freqs.weight"
SUPPORTED = "Use a GGUF file of a Llama, Mistral, Qwen2 or Qwen3 model that has one text model and no experts."

WHOLE_MODEL = {"token_embd.weight": EMBEDDING, "output_norm.weight": "model.norm.weight", "output.weight": LM_HEAD}
BLOCK_TENSOR = re.compile(r"blk\.([0-9]+)\.([a-z_]+)\.(weight|bias)")
MODULES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

# Keys after the architecture's name. The config is made from those in READ; those in HARMLESS do not change the
# computation; those in NEUTRAL change it unless they have this value.
READ = {
    *("context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count"),
    *("attention.head_count_kv", "attention.key_length", "attention.value_length", "attention.sliding_window"),
    *("attention.layer_norm_rms_epsilon", "rope.dimension_count", "rope.freq_base", "rope.scaling.type"),
    *("rope.scaling.factor", "rope.scale_linear"),
}
HARMLESS = {"vocab_size", "tensor_data_layout", "rope.scaling.original_context_length", "rope.scaling.finetuned"}
NEUTRAL: dict[str, object] = {
    "attention.causal": True,
    "expert_count": 0,
    "expert_used_count": 0,
    "rope.scaling.attn_factor": 1.0,
}

# Llama 3.1 and later differ only in the factor: 8, or 32 in the small models.
LLAMA3_FACTORS = (8.0, 32.0)
LLAMA3_CONTEXT = 8192
FACTOR_TOLERANCE = 1e-5  # llama.cpp computes the factors in float32; other parameters change them by more


def tensor_name(name: str, architecture: str) -> str | None:
    """Name of a GGUF tensor in a Hugging Face checkpoint; None if the model has no such tensor."""
    if name in WHOLE_MODEL:
        return WHOLE_MODEL[name]
    found = BLOCK_TENSOR.fullmatch(name)
    if found is None or found[2] not in MODULES or ("norm" in found[2] and found[3] == "bias"):
        return None
    if found[2] in ("attn_q_norm", "attn_k_norm") and architecture != "qwen3":
        return None
    return f"model.layers.{found[1]}.{MODULES[found[2]]}.{found[3]}"


def gguf_config_values(gguf: GgufFile) -> dict[str, Any]:
    """Derive the ``config.json`` of the model, without token ids.

    Raises:
        CheckpointError: a key is missing or invalid.
        UnsupportedModelError: the architecture or a setting is not supported.
    """
    metadata = gguf.metadata
    architecture = _architecture(metadata)
    _check_keys(metadata, architecture)
    if "token_embd.weight" not in gguf.tensors:
        raise CheckpointError(f"{metadata.path} lacks token_embd.weight.", SUPPORTED)

    def integer(key: str, default: int | None = None) -> int:
        return metadata.integer(f"{architecture}.{key}", default)

    heads = integer("attention.head_count")
    head_dim = integer("attention.key_length", integer("embedding_length") // max(heads, 1))
    for key in ("attention.value_length", "rope.dimension_count"):
        if integer(key, head_dim) != head_dim:
            raise UnsupportedModelError(
                f"{metadata.path} has {architecture}.{key} {integer(key)}, but heads of {head_dim} values.", SUPPORTED
            )
    if integer("block_count") > len(gguf.tensors):
        raise CheckpointError(
            f"{metadata.path} has {integer('block_count'):,} layers, but {len(gguf.tensors):,} tensors.", DOWNLOAD
        )
    window = integer("attention.sliding_window", 0)
    if window and architecture != "llama":
        raise UnsupportedModelError(
            f"{metadata.path} has {architecture}.attention.sliding_window {window}.",
            "It does not say which layers have the window. Use the checkpoint that the file was made from.",
        )
    model_type = "mistral" if window else architecture
    return {
        "architectures": [f"{CLASSES[model_type]}ForCausalLM"],
        "model_type": model_type,
        "vocab_size": gguf.tensors["token_embd.weight"].shape[0],
        "hidden_size": integer("embedding_length"),
        "intermediate_size": integer("feed_forward_length"),
        "num_hidden_layers": integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": integer("context_length"),
        "rms_norm_eps": metadata.number(f"{architecture}.attention.layer_norm_rms_epsilon"),
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "rope_parameters": _rope_parameters(gguf, architecture, head_dim),
        "dtype": "bfloat16",
        **_biases(gguf, model_type),
        **({"sliding_window": window} if model_type == "mistral" else {}),
    }


def _architecture(metadata: Metadata) -> str:
    architecture = metadata.text("general.architecture")
    kind = metadata.text("general.type", "model")
    parts = metadata.integer("split.count", 0)
    if kind != "model":
        raise UnsupportedModelError(f"{metadata.path} contains a {kind} instead of a model.", SUPPORTED)
    if architecture not in ARCHITECTURES:
        raise UnsupportedModelError(f"{metadata.path} has the architecture {architecture!r}.", SUPPORTED)
    if parts > 1:
        raise UnsupportedModelError(
            f"{metadata.path} is one of {parts} parts of a model.", "Join the parts with llama-gguf-split --merge."
        )
    return architecture


def _check_keys(metadata: Metadata, architecture: str) -> None:
    """Check that every key of the architecture is known to be read, harmless or neutral."""
    prefix = f"{architecture}."
    own = {key.removeprefix(prefix): metadata.values[key] for key in metadata if key.startswith(prefix)}
    unknown = [key for key in own if key not in READ | HARMLESS and own[key] != NEUTRAL.get(key)]
    if unknown:
        listed = ", ".join(f"{prefix}{key} = {own[key]!r:.40}" for key in sorted(unknown)[:3])
        raise UnsupportedModelError(f"{metadata.path} has settings that are not supported: {listed}.", SUPPORTED)


def _biases(gguf: GgufFile, model_type: str) -> dict[str, bool]:
    """The config fields that say which projections have biases, where the architecture leaves it open."""
    if model_type not in ("llama", "qwen3"):
        return {}
    qkv, output = ("blk.0.attn_q.bias" in gguf.tensors), ("blk.0.attn_output.bias" in gguf.tensors)
    fields = {"attention_bias": output, **({"qkv_bias": qkv} if qkv != output else {})}
    return fields | ({"mlp_bias": "blk.0.ffn_gate.bias" in gguf.tensors} if model_type == "llama" else {})


def _rope_parameters(gguf: GgufFile, architecture: str, head_dim: int) -> dict[str, Any]:
    metadata, prefix = gguf.metadata, f"{architecture}.rope"
    theta = metadata.number(f"{prefix}.freq_base", 10000.0)
    factor = metadata.number(f"{prefix}.scaling.factor", metadata.number(f"{prefix}.scale_linear", 0.0)) or 1.0
    kind = metadata.text(f"{prefix}.scaling.type", "linear")  # llama.cpp's default if only the factor is present
    if kind not in ("none", "linear"):
        raise UnsupportedModelError(
            f"{metadata.path} has {prefix}.scaling.type {kind!r}.",
            "Supported types are 'none' and 'linear', and the factors of Llama 3.1 and later. Use a file without "
            "context extension.",
        )
    is_linear = kind == "linear" and factor != 1
    if ROPE_FACTORS not in gguf.tensors:
        scaling = {"rope_type": "linear", "factor": factor} if is_linear else {"rope_type": "default"}
    elif is_linear:
        raise UnsupportedModelError(f"{metadata.path} has two kinds of rope scaling.", SUPPORTED)
    else:
        scaling = _llama3_scaling(gguf, theta, head_dim)
    return {"rope_theta": theta, **scaling}


def _llama3_scaling(gguf: GgufFile, theta: float, head_dim: int) -> dict[str, Any]:
    """The parameters of Llama 3's rope scaling that give the stored factors.

    llama.cpp stores the factors by which frequencies are divided, not the parameters they were computed from.
    """
    tensor = gguf.tensors[ROPE_FACTORS]
    stored = tensor.read(0, tensor.shape[0]) if tensor.shape == (head_dim // 2,) else None
    candidates = [RopeConfig(theta, "llama3", factor, 1.0, 4.0, LLAMA3_CONTEXT) for factor in LLAMA3_FACTORS]
    for rope in candidates:
        if stored is not None and _are_close(stored, _factors(rope, head_dim)):
            return {
                "rope_type": "llama3",
                "factor": rope.factor,
                "low_freq_factor": rope.low_freq_factor,
                "high_freq_factor": rope.high_freq_factor,
                "original_max_position_embeddings": rope.original_max_position_embeddings,
            }
    raise UnsupportedModelError(
        f"{gguf.path} has factors in {ROPE_FACTORS} that are not those of Llama 3.1 and later.", SUPPORTED
    )


def _factors(rope: RopeConfig, head_dim: int) -> npt.NDArray[np.float32]:
    return inverse_frequencies(RopeConfig(rope.theta), head_dim) / inverse_frequencies(rope, head_dim)


def _are_close(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> bool:
    return bool(np.allclose(first, second, rtol=FACTOR_TOLERANCE, atol=0))
