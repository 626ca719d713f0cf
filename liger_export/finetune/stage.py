"""The frame of a finetuning stage: checks of paths, data, resume, training and the atomic write of the output."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import set_seed

from liger_export.checkpoint import LigerCheckpoint
from liger_export.checkpoint.causal_lm import load_tokenizer
from liger_export.config import read_end_ids
from liger_export.data import TextEncoder
from liger_export.distributed import processes
from liger_export.errors import OutputError
from liger_export.finetune.blocks import Blocks, load_blocks
from liger_export.finetune.plot import can_draw, save_losses
from liger_export.finetune.points import WorkDirectory
from liger_export.finetune.reports import require_log
from liger_export.finetune.settings import FinetuneResult, FinetuneSettings
from liger_export.finetune.training import train
from liger_export.modeling import register
from liger_export.progress import Progress
from liger_export.publishing import new_directory, require_replaceable

__all__ = ["FinetuneRun", "Stage", "run_stage"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneRun:
    """Inputs and output of a run.

    Attributes:
        checkpoint: a Liger checkpoint directory.
        data: a text or JSONL file, or a directory of such files.
        output: directory to create.
        heldout: text to measure on; default: the last blocks of ``data``.
        resume: continue an unfinished run.
        overwrite: replace ``output`` if it exists.
        log_dir: directory for TensorBoard event files.
    """

    checkpoint: Path
    data: Path
    output: Path
    heldout: Path | None = None
    resume: bool = False
    overwrite: bool = False
    log_dir: Path | None = None

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Paths that the run reads."""
        return (self.checkpoint, self.data) if self.heldout is None else (self.checkpoint, self.data, self.heldout)

    @property
    def work(self) -> WorkDirectory:
        """``OUTPUT.work``, where the points to resume from are written."""
        return WorkDirectory(self.output.with_name(self.output.name + ".work"))


class Stage(ABC):
    """A stage of finetuning: the module that it trains, and the output that it writes.

    Attributes:
        name: name of the stage; a run resumes only with the same stage.
        loss_unit: quantity and unit of the training loss.
        learns_text: True if the training loss is that of the held-out metrics.
        opened: the checkpoint.
    """

    name: str
    loss_unit: str
    learns_text: bool

    def __init__(self, opened: LigerCheckpoint) -> None:
        self.opened = opened

    @abstractmethod
    def build(self, settings: FinetuneSettings) -> nn.Module:
        """Load the model in float32 and prepare it for training. For its forward, see ``train``."""

    @abstractmethod
    def save(self, weights: dict[str, Tensor], directory: Path) -> None:
        """Write the output. ``weights`` holds the trained module's tensors by name."""

    @abstractmethod
    def trained_parameters(self) -> int:
        """Return the number of trained parameters."""


def run_stage(stage: Stage, run: FinetuneRun, settings: FinetuneSettings, progress: Progress) -> FinetuneResult:
    """Train and write the output. Under ``accelerate launch`` all processes train, and the first one writes.

    Raises:
        OutputError: ``run.output`` exists or contains an input, or ``run.resume`` does not match the state of
            ``run.work``, or ``run.work`` holds anything else or cannot be written, or ``run.log_dir`` is in them.
        EnvironmentMismatchError: ``run.log_dir`` is given, and the package tensorboard is not installed.
        InputError: the run to resume began with other settings, another model or another text, or the model does not
            know a token of the data.
        DataError: the data is missing, unreadable or too short.
    """
    _check_work(run)
    register()
    set_seed(settings.seed)
    progress.stage("reading the text")
    blocks = load_blocks(
        _encoder(run.checkpoint, stage.opened.config.vocab_size),
        run.data,
        run.heldout,
        settings.sequence_length,
        settings.heldout_fraction,
        packing=settings.packing,
    )
    progress.stage("loading the model")
    model = stage.build(settings)
    begun = _describe(stage.name, stage.opened.values, blocks, settings)
    trained = train(
        model, blocks, settings, run.work, begun=begun, resume=run.resume, log_dir=run.log_dir, progress=progress
    )
    if trained.is_main:
        with new_directory(run.output, run.overwrite, run.inputs) as partial:
            stage.save(trained.weights, partial)
            if can_draw():
                heldout = (trained.before, trained.after) if stage.learns_text else None
                tokens = settings.tokens_per_step(processes().num_processes)
                save_losses(trained.losses, stage.loss_unit, tokens, heldout, partial)
    _remove_work(run.work)
    return FinetuneResult(trained.before, trained.after, stage.trained_parameters(), len(trained.losses))


def _check_work(run: FinetuneRun) -> None:
    require_replaceable(run.output, run.overwrite, run.inputs)
    run.work.require_own()
    if run.log_dir is not None:
        require_log(run.log_dir, (run.output, run.work.path))
    work, resumable = run.work.path, run.work.latest() is not None
    if resumable and not run.resume:
        raise OutputError(f"{work} holds an unfinished run.", "Pass --resume to continue it, or remove it.")
    if run.resume and not resumable:
        raise OutputError(f"{work} holds no point to resume from.", "Omit --resume to start from the beginning.")


def _remove_work(work: WorkDirectory) -> None:
    """Remove the points to resume from, once every process has finished."""
    state = processes()
    state.wait_for_everyone()
    if state.is_main_process:
        work.remove()


def _encoder(checkpoint: Path, vocab_size: int) -> TextEncoder:
    return TextEncoder(checkpoint, load_tokenizer(checkpoint), vocab_size, read_end_ids(checkpoint))


def _describe(
    stage: str, model: Mapping[str, Any], blocks: tuple[Blocks, Tensor], settings: FinetuneSettings
) -> dict[str, Any]:
    """Return everything that a resumed run must share with its beginning, as JSON restores it."""
    trained_on, measured_on = blocks
    kept = {name: value for name, value in asdict(settings).items() if name != "save_steps"}
    described: dict[str, Any] = json.loads(
        json.dumps({"stage": stage, "model": dict(model), "text": trained_on.digest(measured_on), "settings": kept})
    )
    return described
