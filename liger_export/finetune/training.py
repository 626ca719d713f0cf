"""The training loop of both finetuning stages: the transformers Trainer, with measurements before and after."""

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from liger_export.distributed import processes, runs_on_cpu
from liger_export.errors import InputError
from liger_export.files import new_file
from liger_export.finetune.blocks import Blocks
from liger_export.finetune.points import WorkDirectory
from liger_export.finetune.reports import EventLog, Reporter
from liger_export.finetune.settings import FinetuneSettings
from liger_export.metrics import Quality, measure_quality
from liger_export.progress import Progress

__all__ = ["Trained", "train"]


class _PointTrainer(Trainer):  # type: ignore[misc]
    """The transformers Trainer, whose checkpoints are whole or absent."""

    def __init__(self, model: nn.Module, work: WorkDirectory, settings: FinetuneSettings, blocks: Blocks) -> None:
        super().__init__(model, _arguments(settings, work.partial), train_dataset=blocks)
        self._work = work

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with self._work.writing():
            super()._save_checkpoint(model, trial)
            processes().wait_for_everyone()  # each process writes the state of its random numbers
            if self.is_world_process_zero():
                step = self.state.global_step
                self._work.publish(self._work.partial / f"{PREFIX_CHECKPOINT_DIR}-{step}", step)


class _BeforeTraining(TrainerCallback):  # type: ignore[misc]
    """Runs an action when the model has been distributed over its devices, with the number of steps taken before."""

    def __init__(self, action: Callable[[int], None]) -> None:
        self._action = action

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._action(state.global_step)


@dataclass(frozen=True)
class Trained:
    """The result of training, on each process.

    Attributes:
        weights: the whole model's weights by parameter name; with FSDP, on the first process only.
        before: held-out metrics before the first step.
        after: held-out metrics after the last step.
        losses: training loss of each optimizer step.
        is_main: True on the process that writes.
    """

    weights: dict[str, Tensor]
    before: Quality
    after: Quality
    losses: list[float]
    is_main: bool


def train(
    model: nn.Module,
    blocks: tuple[Blocks, Tensor],
    settings: FinetuneSettings,
    work: WorkDirectory,
    *,
    begun: dict[str, Any],
    resume: bool,
    log_dir: Path | None,
    progress: Progress,
) -> Trained:
    """Train a model. Under ``accelerate launch`` all processes take part.

    Args:
        model: a module whose forward takes ``input_ids``, ``labels`` and ``position_ids`` and returns a ``loss``; in
            evaluation mode it returns ``logits``.
        blocks: blocks to train on, and blocks to measure on, int64 [N, T].
        settings: training settings.
        work: directory for the points to resume from.
        begun: description of the run in JSON types; a run resumes only with an equal one.
        resume: continue from the newest point in ``work``.
        log_dir: directory for TensorBoard event files.
        progress: counts optimizer steps, and batches before and after; the stage names the latest training loss and
            the speed.

    Raises:
        InputError: the run to resume began with another description, or its record is damaged.
        OutputError: ``work`` cannot be written.
    """
    if resume:
        _check_resumed(work, begun)
    trained_on, measured_on = blocks
    if processes().is_main_process:
        work.prepare()
    trainer = _PointTrainer(model, work, settings, trained_on)
    log = EventLog(log_dir if trainer.is_world_process_zero() else None)

    def measure_before(step: int) -> None:
        log.open(step)
        if step:
            return
        progress.stage("measuring before training")
        quality = measure_quality(trainer.model_wrapped, measured_on, progress=progress)
        log.add_heldout(quality, 0)
        if trainer.is_world_process_zero():
            with new_file(work.record) as partial:
                partial.write_text(json.dumps({"before": asdict(quality), "begun": begun}))

    trainer.add_callback(_BeforeTraining(measure_before))
    trainer.add_callback(Reporter(progress, log, settings.tokens_per_step(processes().num_processes)))
    trainer.remove_callback(PrinterCallback)
    point = work.latest() if resume else None
    with closing(log):
        trainer.train(resume_from_checkpoint=None if point is None else str(point))
        progress.stage("measuring after training")
        after = measure_quality(trainer.model_wrapped, measured_on, progress=progress)
        log.add_heldout(after, trainer.state.global_step)
    return Trained(
        trainer.accelerator.get_state_dict(trainer.model_wrapped),
        Quality(**json.loads(work.record.read_text())["before"]),
        after,
        [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        trainer.is_world_process_zero(),
    )


def _check_resumed(work: WorkDirectory, now: dict[str, Any]) -> None:
    """Check that a run resumes with what it began with: other settings, another model or another text are refused.

    Raises:
        InputError: something differs, or the record of the beginning is damaged.
    """
    try:
        begun = json.loads(work.record.read_text())["begun"]
        same = {name: begun[name] == now[name] for name in now}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{work.record} is missing or damaged.", f"Remove {work.path} and start again.") from error
    if all(same.values()):
        return
    if same["settings"]:
        other = ", ".join(name for name, is_same in same.items() if not is_same)
        raise InputError(
            f"The unfinished run in {work.path} began with another {other}.", "Pass the one it began with."
        )
    names = [name for name in now["settings"] if now["settings"][name] != begun["settings"].get(name)]
    was = ", ".join(f"{name} {begun['settings'].get(name)}" for name in names)
    raise InputError(f"The unfinished run in {work.path} began with {was}.", "Resume it with the same settings.")


def _arguments(settings: FinetuneSettings, output: Path) -> TrainingArguments:
    on_cuda = torch.cuda.is_available() and not runs_on_cpu()
    arguments = TrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        lr_scheduler_type="cosine",
        warmup_steps=0.03,
        optim="adamw_torch",
        use_cpu=runs_on_cpu(),
        bf16=on_cuda,
        dataloader_pin_memory=on_cuda,
        save_steps=settings.save_steps,
        logging_steps=1,  # so that a resumed run has the losses of a run that was not interrupted
        report_to="none",
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
        seed=settings.seed,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # otherwise the Trainer splits each batch over all GPUs, in threads of one process
    return arguments
