"""LoRA recovery of a linearized model (arXiv 2503.01496, section 3.3), with PEFT and the transformers Trainer."""

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from liger_export.checkpoint import Checkpoint, open_liger, write_base_record
from liger_export.errors import InputError
from liger_export.finetune.rounding import check_trainable, compute_with_rounded_weights
from liger_export.finetune.settings import FinetuneResult, FinetuneSettings
from liger_export.finetune.stage import FinetuneRun, Stage, run_stage
from liger_export.progress import NO_PROGRESS, Progress

__all__ = ["finetune"]


def finetune(
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
    """Train a LoRA adapter for a Liger checkpoint and save it in PEFT's format.

    Until the run ends, ``OUTPUT.work`` holds points to resume from, each of them whole. A run that is killed before its
    first point leaves nothing to resume, and starts again. Under ``accelerate launch`` all processes train, and the
    first one writes.

    Args:
        checkpoint: a Liger checkpoint directory.
        data: a text or JSONL file, or a directory of such files.
        output: adapter directory to create.
        settings: training settings.
        heldout: text to measure on; default: the last blocks of ``data``, which are then not trained on.
        resume: continue an unfinished run.
        overwrite: replace ``output`` if it exists.
        log_dir: directory for TensorBoard event files (extra ``tensorboard``).
        progress: counts optimizer steps, and batches before and after; the stage names the latest training loss and
            the speed.

    Raises:
        CheckpointError, UnsupportedModelError: the checkpoint cannot be used.
        QuantizationError: the precision does not fit the model, or its method is not ``rtn``.
        InputError: the model lacks a target projection, the run to resume began with other settings, or the model
            does not know a token of the data.
        DataError: the data is missing, unreadable or too short.
        OutputError: ``output`` exists, there is an unfinished run next to it and ``resume`` is false, or the disk is
            full. Points that were written before can then be resumed from.
        EnvironmentMismatchError: ``log_dir`` is given, and the package tensorboard is not installed.
    """
    opened = open_liger(checkpoint)
    _check_targets(settings.target_modules, opened.weights)
    check_trainable(settings.precision, opened.config)
    run = FinetuneRun(
        checkpoint=checkpoint,
        data=data,
        output=output,
        heldout=heldout,
        resume=resume,
        overwrite=overwrite,
        log_dir=log_dir,
    )
    return run_stage(_Lora(opened), run, settings, progress)


class _Lora(Stage):
    """A LoRA adapter on a frozen model."""

    name = "lora"
    loss_unit = "loss (nats per token)"
    learns_text = True
    _model: PeftModel

    def build(self, settings: FinetuneSettings) -> PeftModel:
        base = AutoModelForCausalLM.from_pretrained(self.opened.directory, dtype=torch.float32, trust_remote_code=False)
        if settings.gradient_checkpointing:
            base.gradient_checkpointing_enable()
            base.enable_input_require_grads()
        lora = LoraConfig(
            r=settings.rank,
            lora_alpha=2 * settings.rank,
            target_modules=list(settings.target_modules),
            task_type="CAUSAL_LM",
        )
        self._model = get_peft_model(base, lora)
        compute_with_rounded_weights(self._model, settings.precision)
        return self._model

    def save(self, weights: dict[str, Tensor], directory: Path) -> None:
        self._model.peft_config["default"].base_model_name_or_path = self.opened.directory.name  # not an absolute path
        # Without save_embedding_layers=False, PEFT looks for the base model on the hub.
        self._model.save_pretrained(directory, state_dict=weights, save_embedding_layers=False)
        (directory / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
        write_base_record(directory, self.opened.weights)

    def trained_parameters(self) -> int:
        return int(self._model.get_nb_trainable_parameters()[0])


def _check_targets(target_modules: tuple[str, ...], weights: Checkpoint) -> None:
    projections = {name.split(".")[-2] for name, info in weights.tensors.items() if len(info.shape) == 2}
    known = sorted(projections - {"embed_tokens", "lm_head"})
    unknown = [name for name in target_modules if name not in known]
    if unknown:
        raise InputError(f"The model has no projection {', '.join(unknown)}.", f"Choose from: {', '.join(known)}.")
