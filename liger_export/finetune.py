"""LoRA recovery of a linearized model, with PEFT and the transformers Trainer."""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import get_last_checkpoint

from liger_export.checkpoint import Checkpoint, open_liger, write_base_record
from liger_export.errors import DataError, InputError, OutputError
from liger_export.files import new_directory, require_replaceable
from liger_export.modeling import register

__all__ = [
    "FinetuneResult",
    "FinetuneSettings",
    "HeldOut",
    "finetune",
    "measure_heldout",
    "read_documents",
    "token_blocks",
]


StepReport = Callable[[int, int, float | None], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneSettings:
    """How to train the adapter; the defaults follow arXiv 2503.01496, section 4.1.

    Attributes:
        rank: LoRA rank r; alpha is twice the rank.
        target_modules: projections that get an adapter.
        sequence_length: tokens of a training block.
        batch_size: blocks of one optimizer step and device, before accumulation.
        gradient_accumulation: forward passes of one optimizer step.
        epochs: passes over the data; ignored if ``max_steps`` is given.
        max_steps: optimizer steps.
        heldout_fraction: share of the blocks, taken from the end, to measure on when no held-out data is given.
        save_steps: optimizer steps between the points that a run can be resumed from.
        gradient_checkpointing: recompute layers in the backward pass, to save memory.
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
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}.", "It must be 0 or more.")


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Next-token quality on held-out text.

    Attributes:
        loss: mean negative log-likelihood in nats.
        accuracy: share of tokens that are the model's first choice.
        tokens: predictions counted.
    """

    loss: float
    accuracy: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(self.loss)


@dataclass(frozen=True, slots=True)
class FinetuneResult:
    """Held-out quality before and after, and what was trained."""

    before: HeldOut
    after: HeldOut
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
    def __init__(self, report: StepReport) -> None:
        self._report = report

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._report(state.global_step, state.max_steps, None)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        self._report(state.global_step, state.max_steps, logs.get("loss"))


def finetune(
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
    """Train a LoRA adapter for a Liger checkpoint and save it as PEFT does.

    Points to resume from lie in ``OUTPUT.work`` until the run ends.

    Args:
        checkpoint: a Liger checkpoint directory.
        data: a text or JSONL file, or a directory of such files.
        output: adapter directory to create.
        settings: how to train.
        heldout: text to measure on; default: the last blocks of ``data``, which are then not trained on.
        resume: continue an unfinished run.
        overwrite: replace ``output`` if it exists.
        progress: called with the step, the number of steps, and the training loss where it was logged.

    Raises:
        CheckpointError, UnsupportedModelError: the checkpoint cannot be used.
        InputError: the model has no such projection.
        DataError: the data is absent, unreadable or too short.
        OutputError: ``output`` exists, or an unfinished run lies beside it and ``resume`` is false.
    """
    weights = open_liger(checkpoint).weights
    _check_targets(settings.target_modules, weights)
    work = _work_directory(output, resume, overwrite)

    register()
    set_seed(settings.seed)
    train, measured = _load_blocks(checkpoint, data, heldout, settings)
    model = _with_lora(checkpoint, settings)
    trainer = Trainer(
        model, _training_arguments(settings, work), train_dataset=_Blocks(train), callbacks=[_Reporter(progress)]
    )
    trainer.remove_callback(PrinterCallback)
    with model.disable_adapter():
        before = measure_heldout(model, measured)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(work)) if resume else None)
    after = measure_heldout(model, measured)

    with new_directory(output, overwrite) as partial:
        model.peft_config["default"].base_model_name_or_path = checkpoint.name  # not this machine's path
        model.save_pretrained(partial, save_embedding_layers=False)  # else PEFT looks the base up on the hub
        (partial / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
        write_base_record(partial, weights)
    shutil.rmtree(work)
    return FinetuneResult(before, after, model.get_nb_trainable_parameters()[0], trainer.state.global_step)


def _check_targets(target_modules: tuple[str, ...], weights: Checkpoint) -> None:
    projections = {name.split(".")[-2] for name, info in weights.tensors.items() if len(info.shape) == 2}
    unknown = [name for name in target_modules if name not in projections - {"embed_tokens", "lm_head"}]
    if unknown:
        known = ", ".join(sorted(projections - {"embed_tokens", "lm_head"}))
        raise InputError(f"The model has no projection {', '.join(unknown)}.", f"Choose from: {known}.")


def _load_blocks(
    checkpoint: Path, data: Path, heldout: Path | None, settings: FinetuneSettings
) -> tuple[Tensor, Tensor]:
    """Blocks to train on and blocks to measure on, each int64 [N, sequence_length]."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    blocks = token_blocks(tokenizer, data, settings.sequence_length)
    if heldout is not None:
        return blocks, token_blocks(tokenizer, heldout, settings.sequence_length)
    count = max(1, round(len(blocks) * settings.heldout_fraction))
    if count == len(blocks):
        raise DataError(f"{data} gives no training block besides the held-out ones.", "Add text, or pass --heldout.")
    return blocks[:-count], blocks[-count:]


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


@torch.no_grad()
def measure_heldout(model: torch.nn.Module, blocks: Tensor, batch_size: int = 8) -> HeldOut:
    """Next-token loss and accuracy over token blocks, int64 [N, T], in the model's own precision."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    loss = correct = 0.0
    for batch in blocks.split(batch_size):
        batch = batch.to(device)
        logits = model(input_ids=batch).logits[:, :-1].float()
        loss += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum"))
        correct += float((logits.argmax(-1) == batch[:, 1:]).sum())
    model.train(was_training)
    tokens = blocks[:, 1:].numel()
    return HeldOut(loss / tokens, correct / tokens, tokens)


def token_blocks(tokenizer: Any, data: Path, length: int) -> Tensor:
    """Tokenize every document, join them, and cut blocks of ``length`` tokens: int64 [N, length].

    Raises:
        DataError: there is less than one block of text.
    """
    ids = [token for text in read_documents(data) for token in tokenizer(text, verbose=False).input_ids]
    if len(ids) < length:
        raise DataError(f"{data} holds {len(ids)} tokens.", f"At least one block of {length} is needed: add text.")
    return torch.tensor(ids[: len(ids) // length * length]).view(-1, length)


def read_documents(data: Path) -> Iterator[str]:
    """Yield the documents of a text file, of a JSONL file's ``text`` fields, or of a directory of such files.

    Raises:
        DataError: nothing is there, or a file is not UTF-8 text or not JSONL.
    """
    if data.is_dir():
        files = sorted(path for path in data.rglob("*") if path.is_file() and not path.name.startswith("."))
    else:
        files = [data]
    if not files or not files[0].exists():
        raise DataError(f"{data} holds no files.", "Pass a text or JSONL file, or a directory of them.")
    for file in files:
        try:
            if file.suffix == ".jsonl":
                with file.open(encoding="utf-8") as lines:
                    for line in lines:
                        if line.strip():
                            yield _text_of(json.loads(line))
            else:
                yield file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{file} is not UTF-8 text.", "Convert it or leave it out.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file} is not JSONL.", 'Each line must be an object with a "text" field.') from error


def _text_of(record: Any) -> str:
    text = record["text"]
    if not isinstance(text, str):
        raise TypeError("text is no string")
    return text


def _work_directory(output: Path, resume: bool, overwrite: bool) -> Path:
    require_replaceable(output, overwrite)
    work = output.with_name(output.name + ".work")
    resumable = work.is_dir() and get_last_checkpoint(str(work)) is not None
    if resumable and not resume:
        raise OutputError(f"{work} holds an unfinished run.", "Pass --resume to continue it, or remove it.")
    if resume and not resumable:
        raise OutputError(f"There is no unfinished run at {work}.", "Start without --resume.")
    return work


def _training_arguments(settings: FinetuneSettings, work: Path) -> TrainingArguments:
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
        bf16=torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        save_steps=settings.save_steps,
        save_total_limit=2,
        logging_steps=10,
        report_to="none",
        disable_tqdm=True,
        seed=settings.seed,
    )
