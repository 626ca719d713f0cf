"""What both stages of finetuning share: their settings, their data, and the transformers Trainer."""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import AutoTokenizer, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import get_last_checkpoint

from liger_export.data import token_blocks
from liger_export.distributed import processes, runs_on_cpu
from liger_export.errors import DataError, InputError, OutputError
from liger_export.files import require_replaceable
from liger_export.metrics import Quality, measure_quality
from liger_export.progress import Progress

__all__ = [
    "FinetuneResult",
    "FinetuneSettings",
    "Trained",
    "finish",
    "load_blocks",
    "train",
    "work_directory",
]

RECORD_FILE = "run.json"  # in the work directory: how the run began


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneSettings:
    """How to train; the defaults follow arXiv 2503.01496, section 4.1.

    Attributes:
        rank: LoRA rank r; alpha is twice the rank.
        target_modules: projections that get an adapter.
        sequence_length: tokens of a training block.
        batch_size: blocks of one forward pass and device.
        gradient_accumulation: forward passes of one optimizer step.
        learning_rate: peak of a cosine with 3% warm-up.
        weight_decay: AdamW's.
        epochs: passes over the data; ignored if ``max_steps`` is given.
        max_steps: optimizer steps.
        heldout_fraction: share of the blocks, taken from the end, to measure on when no held-out data is given.
        save_steps: optimizer steps between the points that a run can be resumed from.
        gradient_checkpointing: recompute layers in the backward pass, to save memory.
        seed: of initialization and data order.
    """

    rank: int = 8
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    sequence_length: int = 1024
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

    def __post_init__(self) -> None:
        for name in ("learning_rate", "epochs"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise InputError(f"{name} is {getattr(self, name)}.", "It must be greater than zero.")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed is {self.seed}.", "It must be 0 or more, and below 2 to the 32nd.")


@dataclass(frozen=True, slots=True)
class FinetuneResult:
    """Held-out quality before and after, and what was trained. The same on every process."""

    before: Quality
    after: Quality
    trained_parameters: int
    steps: int


class _Blocks(Dataset[dict[str, Tensor]]):
    def __init__(self, blocks: Tensor) -> None:
        self._blocks = blocks

    def __len__(self) -> int:
        return len(self._blocks)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self._blocks[index], "labels": self._blocks[index]}


class _Reporter(TrainerCallback):  # type: ignore[misc]
    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._progress.stage("training")
        self._progress.start(state.max_steps)
        self._progress.advance(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._progress.advance(1)
        if state.global_step >= state.max_steps:
            control.should_save = False  # resumed from its very end, the Trainer would take one step more

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        if "loss" in logs:
            self._progress.stage(f"training, loss {logs['loss']:.3f}")


class _BeforeTraining(TrainerCallback):  # type: ignore[misc]
    """Runs something once the model is spread over its devices, before the first step."""

    def __init__(self, action: Callable[[], None]) -> None:
        self._action = action

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self._action()


@dataclass(frozen=True)
class Trained:
    """What a run leaves on each process.

    Attributes:
        weights: the whole model's, by parameter name; with FSDP, on the first process alone.
        before: held-out quality before the first step.
        after: held-out quality after the last.
        steps: optimizer steps taken.
        is_main: whether this process is the one that writes.
    """

    weights: dict[str, Tensor]
    before: Quality
    after: Quality
    steps: int
    is_main: bool


def train(
    model: nn.Module,
    blocks: tuple[Tensor, Tensor],
    settings: FinetuneSettings,
    work: Path,
    *,
    stage: str,
    described: Mapping[str, Any],
    resume: bool,
    progress: Progress,
) -> Trained:
    """Train a model; started by ``accelerate launch``, on all its processes.

    Args:
        model: a module whose forward takes ``input_ids`` and ``labels`` and returns a ``loss``; in evaluation mode,
            ``logits``.
        blocks: what to train on and what to measure on, each int64 [N, T].
        settings: how to train.
        work: where the points to resume from are written.
        stage: what the run is called.
        described: the checkpoint's config.json.
        resume: continue from the last point.
        progress: counts optimizer steps; the stage names the latest training loss.

    Raises:
        InputError: the run to resume began with something else.
    """
    now = _describe_run(stage, described, blocks, settings)
    if resume:
        _check_resumed(work, now)
    to_train_on, measured = blocks
    record = work / RECORD_FILE
    trainer = Trainer(model, _arguments(settings, work), train_dataset=_Blocks(to_train_on))

    def measure_before() -> None:
        progress.stage("measuring")
        quality = measure_quality(trainer.model_wrapped, measured)
        if trainer.is_world_process_zero():
            work.mkdir(parents=True, exist_ok=True)
            record.write_text(json.dumps({"before": asdict(quality), "begun": now}))

    trainer.add_callback(_BeforeTraining(measure_before))
    trainer.add_callback(_Reporter(progress))
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(work)) if resume else None)
    progress.stage("measuring")
    after = measure_quality(trainer.model_wrapped, measured)
    return Trained(
        trainer.accelerator.get_state_dict(trainer.model_wrapped),
        Quality(**json.loads(record.read_text())["before"]),
        after,
        trainer.state.global_step,
        trainer.is_world_process_zero(),
    )


def finish(work: Path) -> None:
    """Remove the points to resume from, once every process has come here."""
    state = processes()
    state.wait_for_everyone()
    if state.is_main_process:
        shutil.rmtree(work)


def load_blocks(
    checkpoint: Path, data: Path, heldout: Path | None, settings: FinetuneSettings
) -> tuple[Tensor, Tensor]:
    """Blocks to train on and blocks to measure on, each int64 [N, sequence_length].

    Raises:
        DataError: the data is absent, unreadable or too short.
    """
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    blocks = token_blocks(tokenizer, data, settings.sequence_length)
    if heldout is not None:
        return blocks, token_blocks(tokenizer, heldout, settings.sequence_length)
    count = max(1, round(len(blocks) * settings.heldout_fraction))
    if count == len(blocks):
        raise DataError(f"{data} gives no training block besides the held-out ones.", "Add text, or pass --heldout.")
    return blocks[:-count], blocks[-count:]


def work_directory(output: Path, inputs: tuple[Path, ...], *, resume: bool, overwrite: bool) -> Path:
    """``OUTPUT.work``, checked.

    Raises:
        OutputError: ``output`` exists or holds one of the ``inputs``, or an unfinished run lies there and ``resume``
            is false, or the reverse.
    """
    require_replaceable(output, overwrite, inputs)
    work = output.with_name(output.name + ".work")
    resumable = work.is_dir() and get_last_checkpoint(str(work)) is not None
    if resumable and not resume:
        raise OutputError(f"{work} holds an unfinished run.", "Pass --resume to continue it, or remove it.")
    if resume and not resumable:
        raise OutputError(f"There is no unfinished run at {work}.", "Start without --resume.")
    return work


def _check_resumed(work: Path, now: dict[str, Any]) -> None:
    """A run goes on with what it began with: other settings, another model or text would not fit, or mean nothing.

    Raises:
        InputError: something differs, or the record of the beginning is damaged.
    """
    try:
        begun = json.loads((work / RECORD_FILE).read_text())["begun"]
        same = {name: begun[name] == now[name] for name in now}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{work / RECORD_FILE} is missing or damaged.", f"Remove {work} and start again.") from error
    if all(same.values()):
        return
    if same["settings"]:
        other = ", ".join(name for name, is_same in same.items() if not is_same)
        raise InputError(f"The unfinished run in {work} began with another {other}.", "Resume it with what it began.")
    names = [name for name in now["settings"] if now["settings"][name] != begun["settings"].get(name)]
    was = ", ".join(f"{name} {begun['settings'].get(name)}" for name in names)
    raise InputError(f"The unfinished run in {work} began with {was}.", "Resume it with the same settings.")


def _describe_run(stage: str, model: Mapping[str, Any], blocks: tuple[Tensor, Tensor], settings: Any) -> dict[str, Any]:
    """What a resumed run must share with its beginning, as JSON gives it back."""
    digest = hashlib.sha256(b"".join(part.numpy().tobytes() for part in blocks)).hexdigest()
    kept = {name: value for name, value in asdict(settings).items() if name != "save_steps"}
    described: dict[str, Any] = json.loads(
        json.dumps({"stage": stage, "model": dict(model), "text": digest, "settings": kept})
    )
    return described


def _arguments(settings: FinetuneSettings, work: Path) -> TrainingArguments:
    on_cuda = torch.cuda.is_available() and not runs_on_cpu()
    return TrainingArguments(
        output_dir=str(work),
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
        save_total_limit=2,
        logging_steps=10,
        report_to="none",
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
        seed=settings.seed,
    )
