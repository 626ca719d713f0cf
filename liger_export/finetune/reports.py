"""Reports of a training run while it lasts: progress with loss and speed, and TensorBoard event files."""

import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from liger_export.errors import OutputError
from liger_export.extras import required_extra
from liger_export.metrics import Quality
from liger_export.progress import Progress

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["EventLog", "Reporter", "require_log"]

SCALARS = {"loss": "train/loss", "learning_rate": "train/learning_rate", "grad_norm": "train/gradient_norm"}


def require_log(directory: Path, taken: tuple[Path, ...]) -> None:
    """Check that event files can be written, before any long work.

    Args:
        directory: where to write them.
        taken: directories that a run needs for itself.

    Raises:
        OutputError: the directory is in one of ``taken``, or cannot be created.
        EnvironmentMismatchError: the package tensorboard is not installed.
    """
    with required_extra("tensorboard", "The log of a training run"):
        import torch.utils.tensorboard  # noqa: F401
    place = directory.resolve()
    for path in taken:
        if place.is_relative_to(path.resolve()):
            raise OutputError(f"The log directory {directory} is in {path}.", "Choose a directory outside.")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{directory} cannot be created: {error.strerror}.", "Choose another directory.") from error


class EventLog:
    """TensorBoard event files of one run. Nothing is written without a directory."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._writer: SummaryWriter | None = None

    def open(self, step: int) -> None:
        """Begin to write after an optimizer step. TensorBoard then ignores what was written of later steps."""
        if self._directory is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._directory), purge_step=step + 1 if step else None)

    def add(self, values: dict[str, float], step: int) -> None:
        """Write values by tag."""
        if self._writer is not None:
            for tag, value in values.items():
                self._writer.add_scalar(tag, value, step)

    def add_heldout(self, quality: Quality, step: int) -> None:
        """Write metrics on the held-out text."""
        self.add({"heldout/loss": quality.loss, "heldout/accuracy": quality.accuracy}, step)

    def close(self) -> None:
        """Write what is still in memory."""
        if self._writer is not None:
            with suppress(OSError):  # the log must not cost the adapter
                self._writer.close()


class Reporter(TrainerCallback):  # type: ignore[misc]
    """Reports each optimizer step: to a ``Progress``, whose stage names the loss and the speed, and to a log."""

    def __init__(self, progress: Progress, log: EventLog, tokens_per_step: int) -> None:
        self._progress, self._log, self._tokens_per_step = progress, log, tokens_per_step
        self._started = self._steps_before = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to count steps and to measure the speed."""
        self._progress.stage("training")
        self._progress.start(state.max_steps)
        self._progress.advance(state.global_step)
        self._started, self._steps_before = time.perf_counter(), state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count a step. The last one saves no point, because the run ends with it."""
        self._progress.advance(1)
        if state.global_step >= state.max_steps:
            control.should_save = False  # resumed from a checkpoint of its last step, the Trainer would take one more

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        """Report the loss of a step, and the speed since this process began to train."""
        if "loss" in logs:
            seconds = time.perf_counter() - self._started
            speed = (state.global_step - self._steps_before) * self._tokens_per_step / seconds
            self._progress.stage(f"training, loss {logs['loss']:.3f}, {speed:,.0f} tokens/s")
            values = {tag: logs[name] for name, tag in SCALARS.items() if name in logs}
            self._log.add({**values, "train/tokens_per_second": speed}, state.global_step)
