"""Quality recovery of a linearized model: LoRA, preceded for LoLCATs by attention transfer."""

from liger_export.finetune.lora import finetune
from liger_export.finetune.settings import RECIPES, FinetuneResult, FinetuneSettings
from liger_export.finetune.transfer import AttentionTransfer, transfer

__all__ = ["RECIPES", "AttentionTransfer", "FinetuneResult", "FinetuneSettings", "finetune", "transfer"]
