"""Restoring a linearized model's quality: LoRA, and before it, for LoLCATs, attention transfer."""

from liger_export.finetune.lora import finetune
from liger_export.finetune.training import FinetuneResult, FinetuneSettings
from liger_export.finetune.transfer import AttentionTransfer, transfer

__all__ = ["AttentionTransfer", "FinetuneResult", "FinetuneSettings", "finetune", "transfer"]
