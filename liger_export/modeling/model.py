"""The Liger decoder: one model for every backbone and mixer, an ordinary transformers ``PreTrainedModel``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from liger_export.checkpoint import expected_tensors, learned_tensors, open_liger
from liger_export.config import MODEL_TYPES, LigerConfig, read_config_json, rotary_turns
from liger_export.kernels.register import register_cuda_kernels
from liger_export.modeling.cache import LigerCache
from liger_export.modeling.configuration import CONFIG_CLASSES, LigerPreTrainedConfig, liger_config
from liger_export.modeling.loss import can_compute_in_parts, next_token_loss
from liger_export.ops import ATTENTIONS, cos_and_sin, initial_parameters, rotary_angles, tokens_of_last_document

__all__ = [
    "MODEL_CLASSES",
    "LigerDecoderLayer",
    "LigerForCausalLM",
    "LigerModel",
    "LigerRotaryEmbedding",
    "Positions",
    "State",
]


class LigerRotaryEmbedding(nn.Module):
    """Cosines and sines of the rotary angles, exact at any position. There is no maximum context."""

    turns: Tensor

    def __init__(self, config: LigerConfig) -> None:
        super().__init__()
        self.table = rotary_turns(config.rope, config.head_dim).tolist()
        self.register_buffer("turns", torch.tensor(self.table), persistent=False)

    def forward(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Map positions [B, T] to cosine and sine, each [B, T, D / 2]; float64 if ``dtype`` is, otherwise float32."""
        if dtype == torch.float64:
            return cos_and_sin(position_ids, self.turns, dtype)
        angles: tuple[Tensor, Tensor] = rotary_angles(position_ids, self.turns)
        return angles


@dataclass(frozen=True, slots=True)
class Positions:
    """The positions of the tokens in one forward.

    Attributes:
        cos: [B, T, D / 2], cosine of the rotary angles.
        sin: [B, T, D / 2], sine of the rotary angles.
        position_ids: int64 [B, T], -1 at padding.
    """

    cos: Tensor
    sin: Tensor
    position_ids: Tensor


State = tuple[Tensor, ...]  # one layer's tensors, in the order of the state table


class LigerAttention(nn.Module):
    """A mixer between the backbone's projections, with q/k norms if the backbone has them."""

    def __init__(self, config: LigerConfig, layer: int) -> None:
        super().__init__()
        self.attention = ATTENTIONS[config.layer_mixer(layer)]
        self.options = [float(getattr(config, name)) for name in self.attention.signature.options]
        self.head_dim = config.head_dim
        query_size = config.num_attention_heads * config.head_dim
        key_value_size = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, key_value_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, key_value_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=config.output_bias)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(config.head_dim, eps=config.rms_norm_eps)
            self.k_norm = nn.RMSNorm(config.head_dim, eps=config.rms_norm_eps)
        stored = learned_tensors(config)
        self.initial = initial_parameters(config) if self.attention.signature.parameters else {}
        for name, value in self.initial.items():
            if f"model.layers.{layer}.self_attn.{name}" in stored:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value, persistent=False)

    def initialize(self) -> None:
        """Set learned tensors to their start values, except those loaded from a checkpoint."""
        for name, value in self.initial.items():
            init.copy_(getattr(self, name), value)

    def forward(self, hidden_states: Tensor, positions: Positions, state: State) -> tuple[Tensor, State]:
        mixed, *next_state = self.mix(self.project(hidden_states), positions, state)
        return self.o_proj(mixed), tuple(next_state)

    def project(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute query [B, T, H * D], key and value [B, T, G * D]."""
        query, key, value = self.q_proj(hidden_states), self.k_proj(hidden_states), self.v_proj(hidden_states)
        if hasattr(self, "q_norm"):
            query = self.q_norm(query.unflatten(-1, (-1, self.head_dim))).flatten(-2)
            key = self.k_norm(key.unflatten(-1, (-1, self.head_dim))).flatten(-2)
        return query, key, value

    def mix(self, projected: tuple[Tensor, Tensor, Tensor], positions: Positions, state: State) -> tuple[Tensor, ...]:
        """Run the mixer. Returns its output [B, T, H * D], then the next state tensors."""
        learned = [getattr(self, name) for name in self.attention.signature.parameters]
        at = (positions.cos, positions.sin, positions.position_ids)
        return self.attention(*projected, *at, *state, *learned, *self.options)


class LigerMLP(nn.Module):
    """SwiGLU (arXiv 2002.05202): down(silu(gate(x)) * up(x))."""

    def __init__(self, config: LigerConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, hidden_states: Tensor) -> Tensor:
        output: Tensor = self.down_proj(self.gated(hidden_states))
        return output

    def gated(self, hidden_states: Tensor) -> Tensor:
        """Compute the input of ``down_proj``, [B, T, intermediate_size]."""
        inner: Tensor = F.silu(self.gate_proj(hidden_states)) * self.up_proj(hidden_states)
        return inner


class LigerDecoderLayer(GradientCheckpointingLayer):  # type: ignore[misc]
    """Attention and feed-forward, each with a norm before it and a residual around it."""

    def __init__(self, config: LigerConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = LigerAttention(config, layer)
        self.mlp = LigerMLP(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self, hidden_states: Tensor, positions: Positions, state: State, *, is_carried: bool = True
    ) -> tuple[Tensor, State]:
        """Return the residual stream [B, T, hidden_size] after the layer, and the layer's next state.

        A state that no later call reads (``is_carried`` false) has no gradient. ``torch.compile`` would otherwise make
        a backward pass for it, which no kernel has.
        """
        attended, state = self.self_attn(self.input_layernorm(hidden_states), positions, state)
        if not is_carried:
            state = tuple(tensor.detach() for tensor in state)
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states)), state


class LigerPreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """The base class of the Liger models."""

    config_class = LigerPreTrainedConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["LigerDecoderLayer"]
    _is_stateful = True

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, LigerRotaryEmbedding):  # not in checkpoints: transformers leaves it uninitialized
            init.copy_(module.turns, torch.tensor(module.table))
        if isinstance(module, LigerAttention):
            module.initialize()


class LigerModel(LigerPreTrainedModel):
    """The embedding, the decoder layers and the final norm."""

    def __init__(self, config: LigerPreTrainedConfig) -> None:
        super().__init__(config)
        self.liger = liger_config(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(LigerDecoderLayer(self.liger, layer) for layer in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LigerRotaryEmbedding(self.liger)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: LigerCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the tokens of one call, continuing from ``past_key_values``.

        Args:
            input_ids: int64 [B, T].
            attention_mask: [B, columns], zero at padding, for every column so far or only this call's T.
            position_ids: int64 [B, T], counted from the sequence's first token, instead of ``attention_mask``; -1 marks
                padding, which is allowed only at the end of a row. A 0 after the first column begins another document,
                which reads nothing of those before it (sequence packing). Default: continue from the cache.
            past_key_values: the cache that the previous call returned.
            inputs_embeds: [B, T, hidden_size], instead of ``input_ids``.
            use_cache: return a cache; default: only outside training.

        Raises:
            ValueError: both or neither of ``input_ids`` and ``inputs_embeds`` are given, or both ``attention_mask`` and
                ``position_ids``.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass either input_ids or inputs_embeds.")
        if attention_mask is not None and position_ids is not None:
            raise ValueError("Pass attention_mask or position_ids, not both: each defines the positions.")
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        batch, length = hidden_states.shape[:2]
        past = past_key_values
        if past is None:
            past = LigerCache.zeros(self.liger, batch, _activation_dtype(hidden_states), hidden_states.device)

        order = None
        if position_ids is None:
            position_ids = past.seen[:, None] + torch.arange(length, device=hidden_states.device)
            if attention_mask is not None:
                position_ids, order = _move_padding_last(position_ids, attention_mask[:, -length:].bool())
        if order is not None:
            hidden_states = hidden_states.gather(1, order.unsqueeze(-1).expand_as(hidden_states))

        returns_cache = use_cache if use_cache is not None else not self.training
        hidden_states, layer_states = self._run_layers(hidden_states, position_ids, past.layers, returns_cache)
        if order is not None:
            hidden_states = torch.empty_like(hidden_states).scatter(
                1, order.unsqueeze(-1).expand_as(hidden_states), hidden_states
            )
        cache = None
        if returns_cache:
            seen = tokens_of_last_document(position_ids, past.seen)
            cache = LigerCache(layer_states, seen, past.columns + length)
        return BaseModelOutputWithPast(last_hidden_state=hidden_states, past_key_values=cache)

    def _run_layers(
        self, hidden_states: Tensor, position_ids: Tensor, states: list[State], is_carried: bool
    ) -> tuple[Tensor, list[State]]:
        """Return the normalized hidden states [B, T, hidden_size] and every layer's next state."""
        if hidden_states.is_cuda:
            register_cuda_kernels()
        cos, sin = self.rotary_emb(position_ids, hidden_states.dtype)
        positions = Positions(cos, sin, position_ids)
        next_states = []
        for layer, state in zip(self.layers, states, strict=True):
            hidden_states, next_state = layer(hidden_states, positions, state, is_carried=is_carried)
            next_states.append(next_state)
        return self.norm(hidden_states), next_states


def _move_padding_last(position_ids: Tensor, is_token: Tensor) -> tuple[Tensor, Tensor | None]:
    """Positions with padding at the end of each row, and the order of the columns that puts it there.

    Args:
        position_ids: int64 [B, T], as if every column were a token.
        is_token: bool [B, T].

    Returns:
        Positions [B, T], -1 at padding, and the order, int64 [B, T]; None if there is no padding.
    """
    if bool(is_token.all()):
        return position_ids, None
    columns = torch.arange(is_token.shape[1], device=is_token.device)
    position_ids = torch.where(columns < is_token.sum(1, keepdim=True), position_ids, -1)
    return position_ids, is_token.logical_not().argsort(dim=1, stable=True)


def _activation_dtype(hidden_states: Tensor) -> torch.dtype:
    """Dtype of the projections; under autocast it may be narrower than that of the residual stream."""
    device = hidden_states.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_states.dtype


class LigerForCausalLM(LigerPreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """A Liger decoder with its language-model head."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: LigerPreTrainedConfig) -> None:
        super().__init__(config)
        self.model = LigerModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_pretrained(cls, name: Any, *arguments: Any, **options: Any) -> Any:
        """Load a model as transformers does, or a local checkpoint of the Liger paper's implementation."""
        directory = Path(str(name))
        if not directory.is_dir() or read_config_json(directory).get("liger_format") is not None:
            return super().from_pretrained(name, *arguments, **options)
        checkpoint = open_liger(directory)
        options["config"] = cls.config_class.from_dict(checkpoint.values)
        weights = {name: checkpoint.weights.read(name) for name in expected_tensors(checkpoint.config)}
        model = super().from_pretrained(None, *arguments, state_dict=weights, **options)
        model.name_or_path = model.config.name_or_path = str(directory)  # PEFT reads the config.json there
        return model

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: LigerCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Compute logits [B, T, vocab_size], or [B, logits_to_keep, vocab_size], and the loss if labels are given.

        In training with labels the logits are None: the loss is computed in parts. The other arguments are those of
        ``LigerModel.forward``.

        Args:
            labels: int64 [B, T]; shifted here, so pass ``input_ids``. -100 is ignored.
            logits_to_keep: number of last positions to compute logits for; 0 for all.
        """
        decoded = self.model(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache, **kwargs
        )
        in_parts = self.training and not logits_to_keep and can_compute_in_parts(self.lm_head)
        loss_options = {name: value for name, value in kwargs.items() if value is not None}  # PEFT passes None
        if labels is not None and in_parts and loss_options.keys() <= {"num_items_in_batch"}:
            return CausalLMOutputWithPast(
                loss=next_token_loss(decoded.last_hidden_state, self.lm_head, labels, **loss_options),
                past_key_values=decoded.past_key_values,
            )
        logits = self.lm_head(decoded.last_hidden_state[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=decoded.past_key_values)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 1,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Drop the columns that the cache has consumed, and the empty cache that ``generate`` creates."""
        cache = past_key_values if isinstance(past_key_values, LigerCache) else None
        return {
            "input_ids": input_ids[:, cache.columns if cache else 0 :],
            "past_key_values": cache,
            "attention_mask": attention_mask,
            "use_cache": use_cache,
            "logits_to_keep": logits_to_keep,
        }


def _model_class(model_type: str) -> type[LigerForCausalLM]:
    namespace = {"config_class": CONFIG_CLASSES[model_type], "__module__": __name__}
    return type(MODEL_TYPES[model_type].architecture, (LigerForCausalLM,), namespace)


MODEL_CLASSES = {model_type: _model_class(model_type) for model_type in MODEL_TYPES}
