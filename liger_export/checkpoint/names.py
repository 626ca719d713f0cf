"""The tensors a checkpoint holds, by name and shape, from the config alone."""

from liger_export.config import LigerConfig

__all__ = ["expected_tensors", "is_ignored"]


def expected_tensors(config: LigerConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the model, in the order the model runs them.

    A tied ``lm_head.weight`` is not listed: it is ``model.embed_tokens.weight``.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    query, key_value = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    attention = {"q_proj": (query, hidden), "k_proj": (key_value, hidden), "v_proj": (key_value, hidden)}
    attention["o_proj"] = (hidden, query)
    mlp = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}

    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        tensors[f"{prefix}.input_layernorm.weight"] = (hidden,)
        _add_linears(tensors, f"{prefix}.self_attn", attention, config.attention_bias)
        tensors[f"{prefix}.post_attention_layernorm.weight"] = (hidden,)
        _add_linears(tensors, f"{prefix}.mlp", mlp, config.mlp_bias)
    tensors["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        tensors["lm_head.weight"] = (config.vocab_size, hidden)
    return tensors


def _add_linears(
    tensors: dict[str, tuple[int, ...]], prefix: str, shapes: dict[str, tuple[int, int]], bias: bool
) -> None:
    for name, shape in shapes.items():
        tensors[f"{prefix}.{name}.weight"] = shape
        if bias:
            tensors[f"{prefix}.{name}.bias"] = shape[:1]


def is_ignored(name: str, config: LigerConfig) -> bool:
    """Tell whether a tensor may be present without being used: old rotary buffers, a head saved though tied."""
    return name.endswith("rotary_emb.inv_freq") or (config.tie_word_embeddings and name == "lm_head.weight")
