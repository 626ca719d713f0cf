"""Names and shapes of a checkpoint's tensors, derived from the config."""

from liger_export.config import MIXERS, LigerConfig

__all__ = ["expected_tensors", "is_ignored", "learned_tensors"]

Shapes = dict[str, tuple[int, ...]]


def expected_tensors(config: LigerConfig) -> Shapes:
    """Name and shape of every tensor of the model, in the order of use.

    A tied ``lm_head.weight`` is not listed: it is ``model.embed_tokens.weight``.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    query, key_value = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    projections = {"q_proj": (query, hidden), "k_proj": (key_value, hidden), "v_proj": (key_value, hidden)}
    mlp = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
    learned = learned_tensors(config)

    tensors: Shapes = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        tensors[f"{prefix}.input_layernorm.weight"] = (hidden,)
        _add_linears(tensors, f"{prefix}.self_attn", projections, config.qkv_bias)
        _add_linears(tensors, f"{prefix}.self_attn", {"o_proj": (hidden, query)}, config.output_bias)
        if config.qk_norm:
            tensors |= {f"{prefix}.self_attn.{name}.weight": (config.head_dim,) for name in ("q_norm", "k_norm")}
        tensors |= {name: shape for name, shape in learned.items() if name.startswith(f"{prefix}.")}
        tensors[f"{prefix}.post_attention_layernorm.weight"] = (hidden,)
        _add_linears(tensors, f"{prefix}.mlp", mlp, config.mlp_bias)
    tensors["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        tensors["lm_head.weight"] = (config.vocab_size, hidden)
    return tensors


def learned_tensors(config: LigerConfig) -> Shapes:
    """Name and shape of every tensor that the mixer learns and the base model lacks, such as feature maps."""
    shapes = MIXERS[config.mixer].parameter_shapes(config)
    if not config.learned_window_factors:
        shapes.pop("window_factors", None)
    layers = [layer for layer in range(config.num_hidden_layers) if layer not in config.softmax_layers]
    return {f"model.layers.{layer}.self_attn.{name}": shape for layer in layers for name, shape in shapes.items()}


def _add_linears(tensors: Shapes, prefix: str, shapes: dict[str, tuple[int, int]], bias: bool) -> None:
    for name, shape in shapes.items():
        tensors[f"{prefix}.{name}.weight"] = shape
        if bias:
            tensors[f"{prefix}.{name}.bias"] = shape[:1]


def is_ignored(name: str, config: LigerConfig) -> bool:
    """Return true for a tensor that a checkpoint may contain although the model does not use it.

    These are old rotary buffers, a saved copy of a tied head, and q/k norms that config.json switches off.
    """
    unused_norm = not config.qk_norm and name.endswith((".q_norm.weight", ".k_norm.weight"))
    unused_head = config.tie_word_embeddings and name == "lm_head.weight"
    return unused_norm or unused_head or name.endswith("rotary_emb.inv_freq")
