"""Commands that make a model: ``linearize`` and ``finetune``."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from liger_export.commands.console import exporter, print_note, progress_bar, quiet_transformers, show
from liger_export.commands.options import (
    BlockSize,
    CheckpointArgument,
    HeadPrecision,
    Overwrite,
    Quiet,
    WeightPrecision,
)
from liger_export.commands.tables import heldout_table
from liger_export.errors import InputError
from liger_export.precision import Precision

if TYPE_CHECKING:  # these modules load PyTorch
    from liger_export.config import LigerConfig
    from liger_export.finetune import FinetuneResult, FinetuneSettings

__all__ = ["finetune", "linearize"]

DEFAULTS = Precision()


def linearize(
    base: Annotated[
        str,
        typer.Argument(help="Llama, Mistral, Qwen2 or Qwen3 model: a directory, GGUF file or Hugging Face Hub ID."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Liger checkpoint directory to create.")],
    mixer: Annotated[
        str,
        typer.Option(help="Replacement for softmax attention: gla, hgrn2, gsa or lolcats.", rich_help_panel="Mixer"),
    ] = "gla",
    window: Annotated[
        int, typer.Option(min=1, help="Keys in the softmax window, including the current one.", rich_help_panel="Mixer")
    ] = 64,
    gate_normalizer: Annotated[
        float | None,
        typer.Option(show_default="16", help="Divisor of the log gate (gla, gsa).", rich_help_panel="Mixer"),
    ] = None,
    recurrent_weight: Annotated[
        float | None,
        typer.Option(
            show_default="0.5",
            help="Weight of the recurrence; the window gets the rest (gla, hgrn2, gsa).",
            rich_help_panel="Mixer",
        ),
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option(
            min=1, show_default="the head size", help="Memory slots per key/value head (gsa).", rich_help_panel="Mixer"
        ),
    ] = None,
    feature_dim: Annotated[
        int | None,
        typer.Option(
            min=1, show_default="the head size", help="Outputs of each feature map (lolcats).", rich_help_panel="Mixer"
        ),
    ] = None,
    keep_softmax_every: Annotated[
        int | None,
        typer.Option(metavar="N", help="Keep softmax attention in every N-th layer.", rich_help_panel="Softmax layers"),
    ] = None,
    softmax_window: Annotated[
        int | None,
        typer.Option(
            min=1,
            show_default="1024, or the base's limit if smaller",
            help="Keys in the window of those layers.",
            rich_help_panel="Softmax layers",
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Turn a pretrained transformer into a Liger checkpoint.

    The weights stay as they are. Those of a GGUF file are dequantized and rounded to bfloat16.

    Example:
      liger-export linearize path/to/Llama-3.2-1B -o liger --window 256
    """
    with exporter():
        from liger_export.linearize import LinearizeSettings
        from liger_export.linearize import linearize as run
    settings = LinearizeSettings(
        mixer=mixer,
        window_size=window,
        gate_normalizer=gate_normalizer,
        recurrent_weight=recurrent_weight,
        num_slots=slots,
        feature_dim=feature_dim,
        keep_softmax_every=keep_softmax_every,
        softmax_window=softmax_window,
    )
    typer.echo(f"{output}: {_describe(run(base, output, settings, overwrite=overwrite))}")


def _describe(config: "LigerConfig") -> str:
    """One line on a linearized model."""
    described = f"{config.model_type}, {config.num_hidden_layers} layers, window {config.window_size}"
    if not config.softmax_layers:
        return described
    layers = ", ".join(map(str, config.softmax_layers))
    return f"{described}, softmax in layers {layers} (from 0) (window {config.softmax_window})"


def finetune(
    checkpoint: CheckpointArgument,
    data: Annotated[Path, typer.Option(help="Training text: a text or JSONL file, or a directory of them.")],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", help="Adapter directory to create; with --stage transfer, a checkpoint."),
    ],
    stage: Annotated[
        str, typer.Option(help="lora; or transfer, which trains the feature maps of a lolcats model, before lora.")
    ] = "lora",
    heldout: Annotated[
        Path | None, typer.Option(show_default="the end of --data", help="Text to measure quality on.")
    ] = None,
    recipe: Annotated[
        str,
        typer.Option(
            help="Defaults of --rank, --target and --lr: paper; or best, a larger adapter that recovers more.",
            rich_help_panel="Adapter",
        ),
    ] = "paper",
    rank: Annotated[
        int | None,
        typer.Option(min=1, show_default="paper: 8; best: 16", help="LoRA rank.", rich_help_panel="Adapter"),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            show_default="paper: q_proj,k_proj,v_proj; best: all",
            help="Projections to adapt, separated by commas.",
            rich_help_panel="Adapter",
        ),
    ] = None,
    sequence_length: Annotated[
        int, typer.Option(min=2, help="Tokens per training block.", rich_help_panel="Training")
    ] = 1024,
    packing: Annotated[
        bool, typer.Option("--packing", help="Read each document of a block separately.", rich_help_panel="Training")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Blocks per forward pass.", rich_help_panel="Training")] = 8,
    accumulate: Annotated[
        int, typer.Option(min=1, help="Forward passes per optimizer step.", rich_help_panel="Training")
    ] = 1,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            "--lr", show_default="paper: 0.0001; best: 0.0015", help="Peak learning rate.", rich_help_panel="Training"
        ),
    ] = None,
    epochs: Annotated[float, typer.Option(help="Passes over the data.", rich_help_panel="Training")] = 2.0,
    max_steps: Annotated[
        int | None, typer.Option(min=1, help="Optimizer steps; overrides --epochs.", rich_help_panel="Training")
    ] = None,
    save_steps: Annotated[
        int, typer.Option(min=1, help="Optimizer steps between points that --resume can continue from.")
    ] = 200,
    gradient_checkpointing: Annotated[
        bool, typer.Option(help="Save memory by recomputing layers in the backward pass.", rich_help_panel="Training")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed for initialization and data order.", rich_help_panel="Training")] = 0,
    precision: WeightPrecision = DEFAULTS.weights,
    lm_head: HeadPrecision = None,
    block_size: BlockSize = DEFAULTS.block_size,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an unfinished run.")] = False,
    log_dir: Annotated[
        Path | None, typer.Option(show_default="no log", help="Directory for TensorBoard event files.")
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Recover quality by training a small LoRA adapter.

    With --precision int4 or int8, train on weights rounded as convert rounds them with the same options.

    To train on several GPUs, run it as `accelerate launch -m liger_export finetune`.

    Example:
      liger-export finetune liger --data texts/ -o adapter --recipe best
    """
    with exporter():
        from liger_export.finetune import FinetuneSettings
    train, defaults = _training_stage(stage), _recipe(recipe)
    settings = FinetuneSettings(
        rank=defaults.rank if rank is None else rank,
        target_modules=tuple(name.strip() for name in target.split(",")) if target else defaults.target_modules,
        sequence_length=sequence_length,
        packing=packing,
        batch_size=batch_size,
        gradient_accumulation=accumulate,
        learning_rate=defaults.learning_rate if learning_rate is None else learning_rate,
        epochs=epochs,
        max_steps=max_steps,
        save_steps=save_steps,
        gradient_checkpointing=gradient_checkpointing,
        seed=seed,
        precision=Precision(weights=precision, lm_head=lm_head, block_size=block_size),
    )
    run = partial(train, checkpoint, data, output, settings, heldout=heldout, resume=resume, overwrite=overwrite)
    _train(partial(run, log_dir=log_dir), output, quiet=quiet)


def _recipe(name: str) -> "FinetuneSettings":
    """The settings of a recipe. Raises InputError."""
    from liger_export.finetune import RECIPES

    if name not in RECIPES:
        raise InputError(f"There is no recipe {name!r}.", f"Choose one of: {', '.join(RECIPES)}.")
    return RECIPES[name]


def _training_stage(name: str) -> "Callable[..., FinetuneResult]":
    """The function that trains a stage of ``finetune``. Raises InputError."""
    from liger_export.finetune import finetune as lora
    from liger_export.finetune import transfer

    stages = {"lora": lora, "transfer": transfer}
    if name not in stages:
        raise InputError(f"There is no stage {name!r}.", f"Choose one of: {', '.join(stages)}.")
    return stages[name]


def _train(run: "partial[FinetuneResult]", output: Path, *, quiet: bool) -> None:
    """Train, and print the result; on the main process only, if ``accelerate launch`` started several."""
    from liger_export.distributed import processes
    from liger_export.finetune.plot import can_draw

    quiet_transformers()
    is_main = processes().is_main_process
    with progress_bar("loading", visible=is_main and not quiet) as bar:
        result = run(progress=bar)
    if is_main:
        if not can_draw():
            print_note("no plot of the loss was written: matplotlib is not installed (extra bench)")
        show(heldout_table(result.before, result.after))
        counts = f"{result.trained_parameters:,} parameters, {result.steps:,} steps"
        typer.echo(f"{output}: {counts}, {result.after.tokens:,} tokens held out")
