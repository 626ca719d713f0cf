"""Attention transfer, the first stage of LoLCATs (arXiv 2410.10254, section 3.2): learn feature maps from softmax.

Each layer's linearized attention is trained to match softmax attention on the same queries, keys and values. The
teacher's output is passed to the next layer, so every layer is trained on the pretrained model's own activations.
"""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.integrations import is_fsdp_enabled
from transformers.modeling_outputs import CausalLMOutputWithPast

from liger_export.checkpoint import learned_tensors, open_liger, write_weights
from liger_export.config import base_window
from liger_export.errors import InputError
from liger_export.files import CARRIED_FILES, copy_files
from liger_export.finetune.settings import FinetuneResult, FinetuneSettings
from liger_export.finetune.stage import FinetuneRun, Stage, run_stage
from liger_export.modeling import LigerForCausalLM
from liger_export.modeling.model import LigerAttention, Positions, State
from liger_export.ops import ATTENTIONS
from liger_export.progress import NO_PROGRESS, Progress

__all__ = ["AttentionTransfer", "transfer"]


class TaughtAttention(nn.Module):
    """An attention layer that learns to match softmax attention, and outputs the softmax attention in training."""

    def __init__(self, attention: LigerAttention, window: int | None) -> None:
        """Wrap a layer's attention. ``window`` is the base model's attention window, None for all keys."""
        super().__init__()
        self.attention = attention
        self.window = window

    def forward(self, hidden_states: Tensor, positions: Positions, state: State) -> tuple[Tensor, State]:
        """Return softmax attention's output [B, T, hidden_size] in training, the layer's own in evaluation mode.

        In training, the returned state holds the layer's error, a scalar, or is empty if the layer has nothing to
        learn. The error must be part of the output: FSDP gathers a layer's weights for the backward pass when a
        gradient reaches the layer's output.
        """
        if not self.training:
            output: tuple[Tensor, State] = self.attention(hidden_states, positions, state)
            return output
        with torch.no_grad():
            projected = self.attention.project(hidden_states)
            taught = self._softmax_attention(projected, positions)
        error: State = ()
        if self.attention.attention.signature.parameters:  # empty for a layer that keeps softmax attention
            error = (F.mse_loss(self.attention.mix(projected, positions, state)[0].float(), taught.float()),)
        return self.attention.o_proj(taught), error

    def _softmax_attention(self, projected: tuple[Tensor, Tensor, Tensor], positions: Positions) -> Tensor:
        """Compute the base's attention over the whole sequence, or its own sliding window: [B, T, H * D]."""
        (batch, length, width), head_dim = projected[1].shape, self.attention.head_dim
        empty = projected[1].new_zeros(batch, width // head_dim, min(self.window or length, length), head_dim)
        at = (positions.cos, positions.sin, positions.position_ids)
        return ATTENTIONS["softmax"](*projected, *at, empty, empty)[0]


class AttentionTransfer(nn.Module):
    """A LoLCATs model whose loss is the distance of its attention from softmax attention.

    It runs the model's own layers, so sharding and wrapping work as for the model itself.
    """

    _keys_to_ignore_on_save = None  # read by the Trainer when it resumes from a checkpoint
    _no_split_modules = LigerForCausalLM._no_split_modules  # read by accelerate when it shards the model

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

    def forward(
        self, input_ids: Tensor, labels: Tensor | None = None, position_ids: Tensor | None = None
    ) -> CausalLMOutputWithPast:
        """Return the mean of the layers' errors as the loss in training, the model's own logits in evaluation mode.

        Args:
            input_ids: int64 [B, T].
            labels: ignored; the Trainer passes them.
            position_ids: int64 [B, T], which separate documents; default: each row is one text.
        """
        if not self.training:
            return self.student(input_ids)
        return CausalLMOutputWithPast(loss=torch.stack(self.errors(input_ids, position_ids)).mean())

    def errors(self, input_ids: Tensor, position_ids: Tensor | None = None) -> list[Tensor]:
        """Return the mean squared error of each layer that learns. Works in training mode only."""
        states = self.student.model(input_ids, position_ids=position_ids, use_cache=True).past_key_values.layers
        return [error for state in states for error in state]

    def state_dict(self, *arguments: Any, **options: Any) -> Any:
        """Return only the learned tensors: nothing else changes, so checkpoints to resume from need nothing else.

        With FSDP, return all tensors, because accelerate distributes the weights by the names it finds here.
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
    log_dir: Path | None = None,
    progress: Progress = NO_PROGRESS,
) -> FinetuneResult:
    """Train a LoLCATs checkpoint's feature maps and write a new checkpoint with them, as the input of ``finetune``.

    Takes the arguments of ``finetune``. ``output`` becomes a Liger checkpoint. ``rank``, ``target_modules`` and
    ``gradient_checkpointing`` are ignored, because no gradient passes between layers.

    Raises:
        InputError: the settings have integer weights, the checkpoint's mixer has no feature maps, or sequences are not
            longer than its window.
    """
    opened = open_liger(checkpoint)
    if settings.precision.quantizes:
        raise InputError("Feature maps are not trained on rounded weights.", "Omit --precision for this stage.")
    if not learned_tensors(opened.config):
        raise InputError(
            f"{checkpoint} has mixer {opened.config.mixer}, which has no feature maps to train.",
            "Run finetune without this stage, or linearize with --mixer lolcats.",
        )
    if settings.sequence_length <= opened.config.window_size:
        raise InputError(
            f"sequence_length is {settings.sequence_length} and the window holds {opened.config.window_size} keys.",
            "Choose a longer sequence_length: feature maps act only on keys that have left the window.",
        )
    run = FinetuneRun(
        checkpoint=checkpoint,
        data=data,
        output=output,
        heldout=heldout,
        resume=resume,
        overwrite=overwrite,
        log_dir=log_dir,
    )
    return run_stage(_Transfer(opened), run, settings, progress)


class _Transfer(Stage):
    """The learned tensors of a checkpoint, all other tensors frozen."""

    name = "transfer"
    loss_unit = "mean squared error of attention"
    learns_text = False
    _student: AttentionTransfer

    def build(self, settings: FinetuneSettings) -> AttentionTransfer:
        model = AutoModelForCausalLM.from_pretrained(
            self.opened.directory, dtype=torch.float32, trust_remote_code=False
        )
        self._student = AttentionTransfer(model)
        return self._student

    def save(self, weights: dict[str, Tensor], directory: Path) -> None:
        learned = {name: weights[stored] for stored, name in self._student.learned.items()}
        write_weights(self.opened.weights, learned, directory)
        copy_files(CARRIED_FILES, self.opened.directory, directory)
        (directory / "config.json").write_text(json.dumps(self.opened.values, indent=2) + "\n")

    def trained_parameters(self) -> int:
        return sum(torch.Size(shape).numel() for shape in learned_tensors(self.opened.config).values())
