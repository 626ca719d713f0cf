"""LoLCATs' first stage, attention transfer (arXiv 2410.10254, section 3.2): feature maps from a softmax teacher.

Each layer's linearized attention is trained to give what softmax attention gives on the same queries, keys and values.
The teacher's output goes on to the next layer, so every layer learns beside the pretrained model's own activations.
"""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, set_seed
from transformers.integrations import is_fsdp_enabled
from transformers.modeling_outputs import CausalLMOutputWithPast

from liger_export.checkpoint import learned_tensors, open_liger, write_weights
from liger_export.config import base_window
from liger_export.errors import InputError
from liger_export.files import TOKENIZER_FILES, copy_files, new_directory
from liger_export.finetune.training import (
    FinetuneResult,
    FinetuneSettings,
    finish,
    load_blocks,
    train,
    work_directory,
)
from liger_export.modeling import LigerForCausalLM, register
from liger_export.modeling.model import LigerAttention, Positions, State
from liger_export.ops import ATTENTIONS
from liger_export.progress import NO_PROGRESS, Progress

__all__ = ["AttentionTransfer", "transfer"]


class TaughtAttention(nn.Module):
    """An attention that learns to give what softmax attention gives, and passes that on."""

    def __init__(self, attention: LigerAttention, window: int | None) -> None:
        """Wrap a layer's attention; ``window`` is the base's own, None for all keys."""
        super().__init__()
        self.attention = attention
        self.window = window

    def forward(self, hidden_states: Tensor, positions: Positions, state: State) -> tuple[Tensor, State]:
        """In training, softmax attention's output [B, T, hidden_size]; in evaluation mode, the model's own.

        In training the next state is the error, a scalar, or nothing where there is nothing to learn: FSDP gathers a
        layer's weights for the backward pass when a gradient reaches what the layer returned.
        """
        if not self.training:
            output: tuple[Tensor, State] = self.attention(hidden_states, positions, state)
            return output
        with torch.no_grad():
            projected = self.attention.project(hidden_states)
            taught = self._softmax_attention(projected, positions)
        error: State = ()
        if self.attention.attention.signature.parameters:  # a layer that keeps softmax has nothing to learn
            error = (F.mse_loss(self.attention.mix(projected, positions, state)[0].float(), taught.float()),)
        return self.attention.o_proj(taught), error

    def _softmax_attention(self, projected: tuple[Tensor, Tensor, Tensor], positions: Positions) -> Tensor:
        """The base's attention over the whole call, or over its own sliding window: [B, T, H * D]."""
        (batch, length, width), head_dim = projected[1].shape, self.attention.head_dim
        empty = projected[1].new_zeros(batch, width // head_dim, min(self.window or length, length), head_dim)
        at = (positions.cos, positions.sin, positions.position_ids)
        return ATTENTIONS["softmax"](*projected, *at, empty, empty)[0]


class AttentionTransfer(nn.Module):
    """A LoLCATs model whose loss is the distance of its attention from softmax attention.

    It runs the model's own layers, so whatever shards or wraps them does so here too.
    """

    _keys_to_ignore_on_save = None  # what the Trainer asks when it loads a point to resume from
    _no_split_modules = LigerForCausalLM._no_split_modules  # what accelerate asks when it shards

    def __init__(self, model: LigerForCausalLM) -> None:
        super().__init__()
        values, config = model.config.to_dict(), model.model.liger
        layers: list[Any] = list(model.model.layers)
        for index, layer in enumerate(layers):
            layer.self_attn = TaughtAttention(layer.self_attn, base_window(config.backbone, values, index))
        self.student = model
        self.learned = {
            "student." + name.replace(".self_attn.", ".self_attn.attention."): name for name in learned_tensors(config)
        }
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in self.learned)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> CausalLMOutputWithPast:
        """In training the mean of the layers' errors, as the loss; in evaluation mode the model's own logits.

        Args:
            input_ids: int64 [B, T].
            labels: what the Trainer passes along; not used.
        """
        if not self.training:
            return self.student(input_ids)
        return CausalLMOutputWithPast(loss=torch.stack(self.errors(input_ids)).mean())

    def errors(self, input_ids: Tensor) -> list[Tensor]:
        """In training, the mean squared error of each layer that learns."""
        states = self.student.model(input_ids, use_cache=True).past_key_values.layers
        return [error for state in states for error in state]

    def state_dict(self, *arguments: Any, **options: Any) -> Any:
        """The learned tensors alone: nothing else changes, so points to resume from hold nothing else.

        With FSDP all of them, because accelerate spreads the weights over the processes by what it finds here.
        """
        stored = super().state_dict(*arguments, **options)
        return stored if is_fsdp_enabled() else {name: stored[name] for name in stored if name in self.learned}


def transfer(
    checkpoint: Path,
    data: Path,
    output: Path,
    settings: FinetuneSettings,
    *,
    heldout: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = NO_PROGRESS,
) -> FinetuneResult:
    """Train a LoLCATs checkpoint's feature maps and write a checkpoint that has them; then ``finetune`` that one.

    Arguments, errors and behaviour as ``finetune``, except that ``output`` is a Liger checkpoint and ``rank``,
    ``target_modules`` and ``gradient_checkpointing`` have no part: no gradient passes from layer to layer.

    Raises:
        InputError: the checkpoint's mixer has no feature maps, or sequences are no longer than its window.
    """
    opened = open_liger(checkpoint)
    if not learned_tensors(opened.config):
        raise InputError(
            f"{checkpoint} has mixer {opened.config.mixer}, which has no feature maps to transfer to.",
            "Run finetune without this stage, or linearize with --mixer lolcats.",
        )
    if settings.sequence_length <= opened.config.window_size:
        raise InputError(
            f"sequence_length is {settings.sequence_length} and the window holds {opened.config.window_size} keys.",
            "Feature maps act on keys that have left the window: choose a longer sequence_length.",
        )
    inputs = (checkpoint, data) if heldout is None else (checkpoint, data, heldout)
    work = work_directory(output, inputs, resume=resume, overwrite=overwrite)
    register()
    set_seed(settings.seed)
    blocks = load_blocks(checkpoint, data, heldout, settings)
    student = AttentionTransfer(AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32))
    trained = train(
        student, blocks, settings, work, stage="transfer", described=opened.values, resume=resume, progress=progress
    )
    if trained.is_main:
        learned = {name: trained.weights[stored] for stored, name in student.learned.items()}
        with new_directory(output, overwrite, inputs) as partial:
            write_weights(opened.weights, learned, partial)
            copy_files((*TOKENIZER_FILES, "generation_config.json"), checkpoint, partial)
            (partial / "config.json").write_text(json.dumps(opened.values, indent=2) + "\n")
    finish(work)
    count = sum(torch.Size(shape).numel() for shape in learned_tensors(opened.config).values())
    return FinetuneResult(trained.before, trained.after, count, trained.steps)
