"""Settings and results that both finetuning stages share."""

import math
from dataclasses import dataclass, field

from liger_export.errors import InputError
from liger_export.metrics import Quality
from liger_export.precision import Precision

__all__ = ["ATTENTION_INPUTS", "PROJECTIONS", "RECIPES", "FinetuneResult", "FinetuneSettings"]

ATTENTION_INPUTS = ("q_proj", "k_proj", "v_proj")
PROJECTIONS = (*ATTENTION_INPUTS, "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneSettings:
    """Training settings. The defaults follow arXiv 2503.01496, section 4.1.

    Attributes:
        rank: LoRA rank r; alpha is twice the rank.
        target_modules: projections that get an adapter.
        sequence_length: tokens per training block.
        packing: train on each document of a block by itself: state, window and positions begin anew with it. By
            default a block is read as one text.
        batch_size: blocks per forward pass and device.
        gradient_accumulation: forward passes per optimizer step.
        learning_rate: peak learning rate; the schedule is a cosine with 3% warm-up.
        weight_decay: weight decay of AdamW.
        epochs: passes over the data; ignored if ``max_steps`` is given.
        max_steps: number of optimizer steps.
        heldout_fraction: share of the blocks, taken from the end, to measure on if no held-out data is given.
        save_steps: optimizer steps between the points that a run can resume from.
        gradient_checkpointing: recompute layers in the backward pass to save memory.
        seed: seed of initialization and data order.
        precision: precision of the package that the adapter is for. If it has integer weights, training and measuring
            compute with weights that are merged and rounded as ``convert`` does.
    """

    rank: int = 8
    target_modules: tuple[str, ...] = ATTENTION_INPUTS
    sequence_length: int = 1024
    packing: bool = False
    batch_size: int = 8
    gradient_accumulation: int = 1
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    epochs: float = 2.0
    max_steps: int | None = None
    heldout_fraction: float = 0.05
    save_steps: int = 200
    gradient_checkpointing: bool = False
    seed: int = 0
    precision: Precision = field(default_factory=Precision)

    def __post_init__(self) -> None:
        for name in ("learning_rate", "epochs"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise InputError(f"{name} is {getattr(self, name)}.", "It must be a finite number greater than zero.")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed is {self.seed}.", "It must be at least 0 and less than 2**32.")

    def tokens_per_step(self, devices: int) -> int:
        """Return the number of tokens that an optimizer step reads on so many devices."""
        return devices * self.gradient_accumulation * self.batch_size * self.sequence_length


# Settings by name. "best" recovered more at equal tokens (docs/results/quality.md, "Recipes").
RECIPES = {
    "paper": FinetuneSettings(),
    "best": FinetuneSettings(
        rank=16,
        target_modules=PROJECTIONS,
        learning_rate=1.5e-3,
    ),
}


@dataclass(frozen=True, slots=True)
class FinetuneResult:
    """Held-out metrics before and after training, and the amount of training. The same on every process.

    Attributes:
        before: metrics before the first step.
        after: metrics after the last step.
        trained_parameters: number of trained parameters.
        steps: optimizer steps taken.
    """

    before: Quality
    after: Quality
    trained_parameters: int
    steps: int
