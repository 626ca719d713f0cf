"""LoRA recovery of a linearized model (arXiv 2503.01496, section 3.3), with PEFT and the transformers Trainer."""

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, set_seed

from liger_export.checkpoint import Checkpoint, open_liger, write_base_record
from liger_export.errors import InputError
from liger_export.files import new_directory
from liger_export.finetune.training import (
    FinetuneResult,
    FinetuneSettings,
    finish,
    load_blocks,
    train,
    work_directory,
)
from liger_export.modeling import register
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
    progress: Progress = NO_PROGRESS,
) -> FinetuneResult:
    """Train a LoRA adapter for a Liger checkpoint and save it as PEFT does.

    Points to resume from lie in ``OUTPUT.work`` until the run ends. Started by ``accelerate launch``, all processes
    train and the first one writes.

    Args:
        checkpoint: a Liger checkpoint directory.
        data: a text or JSONL file, or a directory of such files.
        output: adapter directory to create.
        settings: how to train.
        heldout: text to measure on; default: the last blocks of ``data``, which are then not trained on.
        resume: continue an unfinished run.
        overwrite: replace ``output`` if it exists.
        progress: counts optimizer steps; the stage names the latest training loss.

    Raises:
        CheckpointError, UnsupportedModelError: the checkpoint cannot be used.
        InputError: the model has no such projection, or the run to resume had other settings.
        DataError: the data is absent, unreadable or too short.
        OutputError: ``output`` exists, or an unfinished run lies beside it and ``resume`` is false.
    """
    opened = open_liger(checkpoint)
    weights = opened.weights
    _check_targets(settings.target_modules, weights)
    inputs = (checkpoint, data) if heldout is None else (checkpoint, data, heldout)
    work = work_directory(output, inputs, resume=resume, overwrite=overwrite)
    register()
    set_seed(settings.seed)
    blocks = load_blocks(checkpoint, data, heldout, settings)
    model = _with_lora(checkpoint, settings)
    trained = train(
        model, blocks, settings, work, stage="lora", described=opened.values, resume=resume, progress=progress
    )
    if trained.is_main:
        with new_directory(output, overwrite, inputs) as partial:
            model.peft_config["default"].base_model_name_or_path = checkpoint.name  # not this machine's path
            # without save_embedding_layers=False PEFT looks the base up on the hub
            model.save_pretrained(partial, state_dict=trained.weights, save_embedding_layers=False)
            (partial / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
            write_base_record(partial, weights)
    finish(work)
    return FinetuneResult(trained.before, trained.after, model.get_nb_trainable_parameters()[0], trained.steps)


def _check_targets(target_modules: tuple[str, ...], weights: Checkpoint) -> None:
    projections = {name.split(".")[-2] for name, info in weights.tensors.items() if len(info.shape) == 2}
    unknown = [name for name in target_modules if name not in projections - {"embed_tokens", "lm_head"}]
    if unknown:
        known = ", ".join(sorted(projections - {"embed_tokens", "lm_head"}))
        raise InputError(f"The model has no projection {', '.join(unknown)}.", f"Choose from: {known}.")


def _with_lora(checkpoint: Path, settings: FinetuneSettings) -> PeftModel:
    base = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    if settings.gradient_checkpointing:
        base.gradient_checkpointing_enable()
        base.enable_input_require_grads()
    lora = LoraConfig(
        r=settings.rank,
        lora_alpha=2 * settings.rank,
        target_modules=list(settings.target_modules),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(base, lora)
