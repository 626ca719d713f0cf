"""An independent version of the paper implementation: the files it saves, and its logits in float64.

The paper implementation is OpenSparseLLMs/Linearization (arXiv 2503.01496). This module shares no code with the package
that it checks and uses no transformers model. It computes one naive step per token.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.tiny import END_OF_TEXT, VOCABULARY, byte_tokenizer

__all__ = ["PAPER_TYPES", "PaperType", "paper_logits", "write_paper_adapter", "write_paper_checkpoint"]

GATE_NORMALIZER = 16  # a constant of the paper implementation, not in config.json
LOLCATS_FEATURES = 128  # outputs of a feature map for every head size, half the number of features
LOLCATS_WINDOW_FACTOR = -2.1972245773362196  # before the sigmoid and before rounding to the checkpoint's bfloat16
ADAPTED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
RANK = 8

Json = dict[str, Any]
Tensors = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class PaperType:
    """One ``model_type`` of the paper implementation.

    Attributes:
        architecture: class name in the ``architectures`` of ``config.json``.
        mixer: gla, gsa, hgrn2 or lolcats.
        fields: fields of ``config.json`` in addition to those of all types.
        query_key_value_bias: true if the q, k and v projections have biases; o never has a bias.
        keys: number of keys in the softmax window, including the current key. It is not in ``config.json``: flash
            attention got the constant window (64, 64), which is the current key and 64 older keys. lolcats uses its
            own mask of 64 keys.
    """

    architecture: str
    mixer: str
    fields: Json
    query_key_value_bias: bool = False
    keys: int = 65


_LLAMA: Json = {"attention_bias": False, "head_dim": 8, "mlp_bias": False, "pretraining_tp": 1, "rope_scaling": None}
_UNUSED: Json = {"expand_k": 1, "expand_v": 1, "hidden_ratio": 4}
_MISTRAL: Json = {"head_dim": 8, "sliding_window": 4096}
_QWEN2: Json = {"max_window_layers": 28, "rope_scaling": None, "sliding_window": None, "use_sliding_window": False}
_QWEN3: Json = {**_QWEN2, "attention_bias": False, "head_dim": 8}
_LOLCATS: Json = {"attn": None, "attn_mode": "fused_chunk", "feature_map": "lolcats_hedgehog", "norm_eps": 1e-6}
_LOLCATS |= {"elementwise_affine": True, "fuse_cross_entropy": True, "norm_q": True, "norm_k": True}
_LOLCATS |= {"norm_feature_map": False, "tie_feature_map_qk": False}

_ADAPTER_CONFIG = """{
  "alpha_pattern": {}, "auto_mapping": null, "bias": "none", "eva_config": null, "exclude_modules": null,
  "fan_in_fan_out": false, "inference_mode": true, "init_lora_weights": true, "layer_replication": null,
  "layers_pattern": null, "layers_to_transform": null, "loftq_config": {}, "lora_alpha": 8, "lora_bias": false,
  "lora_dropout": 0.0, "megatron_config": null, "megatron_core": "megatron.core", "modules_to_save": null,
  "peft_type": "LORA", "r": 8, "rank_pattern": {}, "revision": null, "task_type": "CAUSAL_LM",
  "target_modules": ["self_attn.v_proj", "self_attn.q_proj", "self_attn.k_proj"],
  "use_dora": false, "use_rslora": false
}"""

# The Llama types read the head size from config.json; the others require or compute hidden_size / heads.
PAPER_TYPES = {
    "liger_gla": PaperType("LigerGLAForCausalLM", "gla", {**_LLAMA, "hidden_size": 24}),
    "liger_gsa": PaperType("LigerGSAForCausalLM", "gsa", {**_LLAMA, "hidden_size": 24, "pool_size": 4}),
    "liger_hgrn2": PaperType("LigerHGRN2ForCausalLM", "hgrn2", {**_LLAMA, "hidden_size": 24}),
    "liger_mistral_gla": PaperType("LigerMistralGLAForCausalLM", "gla", {**_MISTRAL, **_UNUSED}),
    "liger_qwen2_gla": PaperType("LigerQwen2GLAForCausalLM", "gla", _QWEN2, query_key_value_bias=True),
    "liger_qwen3_gla": PaperType("LigerQwen3GLAForCausalLM", "gla", _QWEN3, query_key_value_bias=True),
    "lolcats": PaperType("LolcatsModelForCausalLM", "lolcats", {**_LLAMA, **_UNUSED, **_LOLCATS}, keys=64),
}


def write_paper_checkpoint(
    directory: Path,
    model_type: str,
    *,
    seed: int = 0,
    edited_base: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    **overrides: Any,
) -> Path:
    """Write a tiny random checkpoint with a tokenizer in the paper implementation's format.

    Args:
        directory: directory to create.
        model_type: a key of ``PAPER_TYPES``.
        seed: seed of the random weights.
        edited_base: write the starting point of the paper implementation instead: a base's tensors with an edited
            config.json. They differ only for liger_qwen3_gla, which then has q_norm and k_norm and no biases.
        dtype: dtype of the weights; the paper implementation saves bfloat16.
        **overrides: config.json fields, such as ``pool_size`` or ``tie_word_embeddings``. ``window_size`` adds the
            field of a fork's liger_gla, which is the exact number of keys.
    """
    if edited_base and model_type == "lolcats":
        raise ValueError("A base has no feature maps.")
    config = _config(model_type, overrides)
    generator = torch.Generator().manual_seed(seed)
    tensors = _random_tensors(config, generator, edited_base)
    directory.mkdir(parents=True, exist_ok=True)
    config["torch_dtype"] = str(dtype).removeprefix("torch.")
    _write_json(directory / "config.json", config)
    _write_json(
        directory / "generation_config.json", {"_from_model_config": True, "bos_token_id": 0, "eos_token_id": 0}
    )
    contiguous = {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, directory / "model.safetensors", metadata={"format": "pt"})
    byte_tokenizer().save(str(directory / "tokenizer.json"))
    tokens = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT}
    tokenizer = {"padding_side": "left", "tokenizer_class": "PreTrainedTokenizerFast", **tokens}
    _write_json(directory / "tokenizer_config.json", tokenizer)
    return directory


def write_paper_adapter(directory: Path, checkpoint: Path, *, seed: int = 1) -> Path:
    """Write a random LoRA adapter in the format of PEFT: float32 factors of q, k and v."""
    generator = torch.Generator().manual_seed(seed)
    factors: Tensors = {}
    for name, weight in load_file(checkpoint / "model.safetensors").items():
        if name.endswith(tuple(f"{module}.weight" for module in ADAPTED)):
            rows, columns = weight.shape
            prefix = f"base_model.model.{name.removesuffix('.weight')}"
            factors[f"{prefix}.lora_A.weight"] = _normal(generator, RANK, columns)
            factors[f"{prefix}.lora_B.weight"] = _normal(generator, rows, RANK) / 8
    values = {**json.loads(_ADAPTER_CONFIG), "base_model_name_or_path": str(checkpoint)}
    directory.mkdir(parents=True, exist_ok=True)
    _write_json(directory / "adapter_config.json", values)
    save_file(factors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    return directory


def paper_logits(
    checkpoint: Path, token_ids: Tensor, adapter: Path | None = None, *, keys: int | None = None
) -> Tensor:
    """Full-sequence forward of the paper implementation in float64.

    Args:
        checkpoint: directory with ``config.json`` and ``model.safetensors``.
        token_ids: int64 [B, T], without padding.
        adapter: LoRA adapter directory.
        keys: number of keys in the softmax window, including the current key; default: ``window_size`` in config.json,
            or else the model type's.

    Returns:
        Logits, float64 [B, T, vocabulary].
    """
    config: Json = json.loads((checkpoint / "config.json").read_text())
    kind = PAPER_TYPES[config["model_type"]]
    if config.get("rope_scaling"):
        raise NotImplementedError("rope_scaling")
    keys = keys or config.get("window_size") or kind.keys
    tensors = _read_tensors(checkpoint, adapter)
    heads, num_key_value_heads = config["num_attention_heads"], config["num_key_value_heads"]
    epsilon = config["rms_norm_eps"]
    embedding = tensors["model.embed_tokens.weight"]

    hidden = embedding[token_ids]
    for layer in range(config["num_hidden_layers"]):
        weights = _under(tensors, f"model.layers.{layer}.")
        attention, mlp = _under(weights, "self_attn."), _under(weights, "mlp.")
        x = _rms_norm(hidden, weights["input_layernorm.weight"], epsilon)
        # q_norm and k_norm of an edited Qwen3 base are not used.
        query = _linear(x, attention, "q_proj").unflatten(-1, (heads, -1))
        key = _linear(x, attention, "k_proj").unflatten(-1, (num_key_value_heads, -1))
        value = _linear(x, attention, "v_proj").unflatten(-1, (num_key_value_heads, -1))
        if kind.mixer == "lolcats":
            mixed = _lolcats(query, key, value, attention, config["rope_theta"], keys)
        else:
            recurrent = _RECURRENCES[kind.mixer](query, key, value, config)
            mixed = 0.5 * recurrent + 0.5 * _window(query, key, value, config["rope_theta"], keys)
        hidden = hidden + _linear(mixed.flatten(2), attention, "o_proj")
        x = _rms_norm(hidden, weights["post_attention_layernorm.weight"], epsilon)
        hidden = hidden + _linear(F.silu(_linear(x, mlp, "gate_proj")) * _linear(x, mlp, "up_proj"), mlp, "down_proj")
    hidden = _rms_norm(hidden, tensors["model.norm.weight"], epsilon)
    return hidden @ (embedding if config["tie_word_embeddings"] else tensors["lm_head.weight"]).T


def _rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + epsilon).sqrt() * weight


def _linear(x: Tensor, tensors: Tensors, name: str) -> Tensor:
    output = x @ tensors[f"{name}.weight"].T
    return output + tensors[f"{name}.bias"] if f"{name}.bias" in tensors else output


def _repeat(x: Tensor, heads: int) -> Tensor:
    """Repeat [B, T, G, D] to [B, T, H, D]: query head h reads key/value head h // (H // G)."""
    return x.repeat_interleave(heads // x.shape[2], dim=2)


def _rotate(x: Tensor, theta: float) -> Tensor:
    """Apply RoPE (arXiv 2104.09864) to [B, T, heads, D], pairing the two halves of a head."""
    half = x.shape[-1] // 2
    frequencies = torch.pow(theta, -torch.arange(half, dtype=torch.float64) / half)
    angles = (torch.arange(x.shape[1], dtype=torch.float64)[:, None] * frequencies)[:, None]
    left, right = x[..., :half], x[..., half:]
    return torch.cat((left * angles.cos() - right * angles.sin(), right * angles.cos() + left * angles.sin()), dim=-1)


def _window(query: Tensor, key: Tensor, value: Tensor, theta: float, keys: int) -> Tensor:
    """Softmax attention over the last ``keys`` keys: [B, T, H, D]."""
    heads, size = query.shape[2:]
    query, key, value = _rotate(query, theta), _rotate(_repeat(key, heads), theta), _repeat(value, heads)
    outputs = []
    for t in range(query.shape[1]):
        seen = slice(max(0, t + 1 - keys), t + 1)
        scores = torch.einsum("bhd,bshd->bhs", query[:, t], key[:, seen]) / math.sqrt(size)
        outputs.append(torch.einsum("bhs,bshd->bhd", scores.softmax(-1), value[:, seen]))
    return torch.stack(outputs, dim=1)


def _pool(key: Tensor, size: int) -> Tensor:
    """Adaptive average pooling of the flattened heads: [B, T, G, D] to [B, T, G, size]."""
    flat = key.flatten(2)
    inputs, outputs = flat.shape[-1], key.shape[2] * size
    ranges = [(i * inputs // outputs, -(-(i + 1) * inputs // outputs)) for i in range(outputs)]
    pooled = torch.stack([flat[..., a:b].mean(-1) for a, b in ranges], dim=-1)
    return pooled.reshape(*key.shape[:3], size)


def _gated(query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor) -> Tensor:
    """S = diag(exp g) S + k v^T and o = S^T q, for query and key [B, T, H, K] and value [B, T, H, V]."""
    batch, length, heads, size = key.shape
    state = torch.zeros(batch, heads, size, value.shape[-1], dtype=torch.float64)
    outputs = []
    for t in range(length):
        state = log_decay[:, t, :, :, None].exp() * state + key[:, t, :, :, None] * value[:, t, :, None, :]
        outputs.append((query[:, t, :, None, :] @ state).squeeze(-2))
    return torch.stack(outputs, dim=1)


def _gla(query: Tensor, key: Tensor, value: Tensor, config: Json) -> Tensor:
    heads = query.shape[2]
    log_decay = F.logsigmoid(_pool(key, key.shape[-1])) / GATE_NORMALIZER
    return _gated(query.softmax(-1), _repeat(key.softmax(-1), heads), _repeat(value, heads), _repeat(log_decay, heads))


def _hgrn2(query: Tensor, key: Tensor, value: Tensor, config: Json) -> Tensor:
    heads = query.shape[2]
    forget = _repeat(_pool(key, key.shape[-1]), heads)
    return _gated(query.softmax(-1), 1 - forget.sigmoid(), _repeat(value, heads), F.logsigmoid(forget))


def _gsa(query: Tensor, key: Tensor, value: Tensor, config: Json) -> Tensor:
    batch, length, heads, size = query.shape
    slots: int = config["pool_size"]
    log_decay = _repeat(F.logsigmoid(_pool(key, slots)) / GATE_NORMALIZER, heads)
    decay, written = log_decay.exp().unsqueeze(-1), (1 - log_decay.exp()).unsqueeze(-1)
    key, value = _repeat(key, heads).unsqueeze(-2), _repeat(value, heads).unsqueeze(-2)
    slot_key = torch.zeros(batch, heads, slots, size, dtype=torch.float64)
    slot_value = torch.zeros_like(slot_key)
    outputs = []
    for t in range(length):
        slot_key = decay[:, t] * slot_key + written[:, t] * key[:, t]
        slot_value = decay[:, t] * slot_value + written[:, t] * value[:, t]
        weights = (slot_key @ query[:, t, :, :, None]).squeeze(-1).softmax(-1)
        outputs.append((weights[:, :, None] @ slot_value).squeeze(-2))
    return torch.stack(outputs, dim=1)


_RECURRENCES: dict[str, Callable[[Tensor, Tensor, Tensor, Json], Tensor]] = {"gla": _gla, "gsa": _gsa, "hgrn2": _hgrn2}


def _lolcats(query: Tensor, key: Tensor, value: Tensor, tensors: Tensors, theta: float, keys: int) -> Tensor:
    """Window and linear attention with one denominator (arXiv 2410.10254), plus the paper implementation's 1e-6."""
    heads, size = query.shape[2:]
    query, key, value = _rotate(query, theta), _repeat(_rotate(key, theta), heads), _repeat(value, heads)
    query_features, key_features = _features(query, tensors, "feature_map_q"), _features(key, tensors, "feature_map_k")
    factor = tensors["window_factors"].reshape(heads, 1).sigmoid()
    outputs = []
    for t in range(query.shape[1]):
        first = max(0, t + 1 - keys)
        scores = torch.einsum("bhd,bshd->bhs", query[:, t], key[:, first : t + 1]) / math.sqrt(size)
        near = factor * (scores - scores.amax(-1, keepdim=True)).exp()
        far = torch.einsum("bhf,bshf->bhs", query_features[:, t], key_features[:, :first])
        weights = torch.cat((far, near), dim=-1)
        total = weights.sum(-1, keepdim=True) + 1e-6
        outputs.append(torch.einsum("bhs,bshd->bhd", weights, value[:, : t + 1]) / total)
    return torch.stack(outputs, dim=1)


def _features(x: Tensor, tensors: Tensors, name: str) -> Tensor:
    weight = torch.stack([tensors[f"{name}.mlp.linears.{head}.weight"] for head in range(x.shape[2])])
    mapped = torch.einsum("bthd,hfd->bthf", x, weight)
    return torch.cat((mapped.softmax(-1), (-mapped).softmax(-1)), dim=-1).clamp(min=1e-12)


def _config(model_type: str, overrides: Json) -> Json:
    kind = PAPER_TYPES[model_type]
    size: Json = {"hidden_size": 32, "intermediate_size": 40, "num_attention_heads": 4, "num_key_value_heads": 2}
    size |= {"num_hidden_layers": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 256}
    values: Json = {"attention_dropout": 0.0, "hidden_act": "silu", "initializer_range": 0.02, "rms_norm_eps": 1e-6}
    values |= {"bos_token_id": 0, "eos_token_id": 0, "rope_theta": 10000.0, "tie_word_embeddings": False}
    origin: Json = {"architectures": [kind.architecture], "model_type": model_type}
    origin |= {"transformers_version": "4.51.3", "use_cache": True}
    return {**size, **values, **origin, **kind.fields, **overrides}


def _random_tensors(config: Json, generator: torch.Generator, edited_base: bool) -> Tensors:
    kind = PAPER_TYPES[config["model_type"]]
    hidden, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    qwen = kind.query_key_value_bias
    head_dim: int = hidden // heads if qwen else config["head_dim"]
    query, key_value = heads * head_dim, config["num_key_value_heads"] * head_dim
    norms = edited_base and config["model_type"] == "liger_qwen3_gla"
    bias, mlp_bias = qwen and not norms, bool(config.get("mlp_bias"))
    linears = [("self_attn.q_proj", query, hidden, bias), ("self_attn.k_proj", key_value, hidden, bias)]
    linears += [("self_attn.v_proj", key_value, hidden, bias), ("self_attn.o_proj", hidden, query, False)]
    linears += [("mlp.gate_proj", inner, hidden, mlp_bias), ("mlp.up_proj", inner, hidden, mlp_bias)]
    linears += [("mlp.down_proj", hidden, inner, mlp_bias)]

    tensors = {"model.embed_tokens.weight": _normal(generator, config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{name}.weight"] = 1 + _normal(generator, hidden)
        for name, rows, columns, has_bias in linears:
            tensors[f"{prefix}{name}.weight"] = _normal(generator, rows, columns)
            if has_bias:
                tensors[f"{prefix}{name}.bias"] = _normal(generator, rows)
        for name in ("q_norm", "k_norm") if norms else ():
            tensors[f"{prefix}self_attn.{name}.weight"] = 1 + _normal(generator, head_dim)
        if kind.mixer == "lolcats":
            for name in (f"feature_map_{part}.mlp.linears.{head}" for part in "qk" for head in range(heads)):
                tensors[f"{prefix}self_attn.{name}.weight"] = _normal(generator, LOLCATS_FEATURES, head_dim)
            tensors[f"{prefix}self_attn.window_factors"] = torch.full((1, heads, 1, 1), LOLCATS_WINDOW_FACTOR)
    tensors["model.norm.weight"] = 1 + _normal(generator, hidden)
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = _normal(generator, config["vocab_size"], hidden)
    return tensors


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return 0.3 * torch.randn(*shape, generator=generator)


def _read_tensors(checkpoint: Path, adapter: Path | None) -> Tensors:
    tensors = {name: tensor.double() for name, tensor in load_file(checkpoint / "model.safetensors").items()}
    if adapter is not None:
        config = json.loads((adapter / "adapter_config.json").read_text())
        factors = {name: tensor.double() for name, tensor in load_file(adapter / "adapter_model.safetensors").items()}
        for name in [name for name in factors if ".lora_A." in name]:
            update = factors[name.replace(".lora_A.", ".lora_B.")] @ factors[name]
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            tensors[f"{module}.weight"] += config["lora_alpha"] / config["r"] * update
    return tensors


def _under(tensors: Tensors, prefix: str) -> Tensors:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _write_json(path: Path, values: Json) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
