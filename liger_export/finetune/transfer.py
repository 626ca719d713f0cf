"""LoLCATs' first stage, attention transfer (arXiv 2410.10254, section 3.2): feature maps from a softmax teacher.

Each layer's linearized attention is trained to give what softmax attention gives on the same queries, keys and values.
The teacher's output goes on to the next layer, so every layer learns beside the pretrained model's own activations.
"""

import json
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, set_seed
from transformers.modeling_outputs import CausalLMOutputWithPast

from liger_export.checkpoint import learned_tensors, open_liger, write_weights
from liger_export.config import base_window
from liger_export.errors import InputError
from liger_export.files import TOKENIZER_FILES, copy_files, new_directory
from liger_export.finetune.training import (
    FinetuneResult,
    FinetuneSettings,
    StepReport,
    finish,
    load_blocks,
    train,
    work_directory,
)
from liger_export.modeling import LigerCache, LigerForCausalLM, register
from liger_export.modeling.model import LigerAttention, LigerDecoderLayer, Positions, activation_dtype
from liger_export.ops import ATTENTIONS

__all__ = ["AttentionTransfer", "transfer"]


class AttentionTransfer(nn.Module):
    """A LoLCATs model whose loss is the distance of its attention from softmax attention."""

    def __init__(self, model: LigerForCausalLM) -> None:
        super().__init__()
        self.student = model
        values, config = model.config.to_dict(), model.model.liger
        self.windows = [base_window(config.backbone, values, layer) for layer in range(config.num_hidden_layers)]
        self.learned = {f"student.{name}" for name in learned_tensors(config)}
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in self.learned)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> CausalLMOutputWithPast:
        """In training the distance, as the loss; in evaluation mode the model's own logits.

        Args:
            input_ids: int64 [B, T].
            labels: what the Trainer passes along; not used.
        """
        return CausalLMOutputWithPast(loss=self._distance(input_ids)) if self.training else self.student(input_ids)

    def state_dict(self, *arguments: Any, **options: Any) -> Any:
        """The learned tensors alone: nothing else changes, so points to resume from hold nothing else."""
        return {name: t for name, t in super().state_dict(*arguments, **options).items() if name in self.learned}

    def _distance(self, input_ids: Tensor) -> Tensor:
        """Mean squared error of the layers' attention outputs, averaged over layers."""
        decoder = self.student.model
        hidden_states = decoder.embed_tokens(input_ids)
        steps = torch.arange(input_ids.shape[1], device=input_ids.device)
        positions = decoder.positions(steps.expand_as(input_ids), hidden_states.dtype)
        dtype = activation_dtype(hidden_states)
        cache = LigerCache.zeros(decoder.liger, len(input_ids), dtype, input_ids.device)
        errors, layers = [], cast(list[LigerDecoderLayer], list(decoder.layers))
        for layer, state, window in zip(layers, cache.layers, self.windows, strict=True):
            attention = layer.self_attn
            with torch.no_grad():
                projected = attention.project(layer.input_layernorm(hidden_states))
                taught = _softmax_attention(attention, projected, positions, window)
                hidden_states = hidden_states + attention.o_proj(taught)
                hidden_states = hidden_states + layer.mlp(layer.post_attention_layernorm(hidden_states))
            if attention.attention.form.parameters:  # a layer that keeps softmax has nothing to learn
                errors.append(F.mse_loss(attention.mix(projected, positions, state)[0].float(), taught.float()))
        return torch.stack(errors).mean()


def _softmax_attention(
    attention: LigerAttention, projected: tuple[Tensor, Tensor, Tensor], positions: Positions, window: int | None
) -> Tensor:
    """The base's attention over the whole call, or over its own sliding window: [B, T, H * D]."""
    batch, length, width = projected[1].shape
    shape = (batch, width // attention.head_dim, min(window or length, length), attention.head_dim)
    empty = projected[1].new_zeros(shape)
    at = (positions.cos, positions.sin, positions.position_ids)
    return ATTENTIONS["softmax"](*projected, *at, empty, empty)[0]


def transfer(
    checkpoint: Path,
    data: Path,
    output: Path,
    settings: FinetuneSettings,
    *,
    heldout: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: StepReport = lambda *_: None,
) -> FinetuneResult:
    """Train a LoLCATs checkpoint's feature maps and write a checkpoint that has them; then ``finetune`` that one.

    Arguments, errors and behaviour as ``finetune``, except that ``output`` is a Liger checkpoint and ``rank`` and
    ``target_modules`` have no part.

    Raises:
        InputError: the checkpoint's mixer has no feature maps.
    """
    opened = open_liger(checkpoint)
    if not learned_tensors(opened.config):
        raise InputError(
            f"{checkpoint} has mixer {opened.config.mixer}, which has no feature maps to transfer to.",
            "Run finetune without this stage, or linearize with --mixer lolcats.",
        )
    work = work_directory(output, settings, resume=resume, overwrite=overwrite)
    register()
    set_seed(settings.seed)
    blocks = load_blocks(checkpoint, data, heldout, settings)
    student = AttentionTransfer(AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32))
    trained = train(student, blocks, settings, work, resume=resume, progress=progress)
    names = learned_tensors(opened.config)
    if trained.is_main:
        learned = {name: trained.weights[f"student.{name}"] for name in names}
        with new_directory(output, overwrite, inputs=(checkpoint,)) as partial:
            write_weights(opened.weights, learned, partial)
            copy_files((*TOKENIZER_FILES, "generation_config.json"), checkpoint, partial)
            (partial / "config.json").write_text(json.dumps(opened.values, indent=2) + "\n")
    finish(work)
    count = sum(torch.Size(shape).numel() for shape in names.values())
    return FinetuneResult(trained.before, trained.after, count, trained.steps)
