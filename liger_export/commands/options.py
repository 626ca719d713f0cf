"""Options that several commands share, and parsers for option values."""

from pathlib import Path
from typing import Annotated

import typer

from liger_export.errors import InputError
from liger_export.precision import BLOCK_SIZES, PRECISIONS

__all__ = [
    "Adapters",
    "BlockSize",
    "CheckpointArgument",
    "Device",
    "HeadPrecision",
    "JsonFile",
    "Lowering",
    "MinP",
    "Overwrite",
    "PackageArgument",
    "Quiet",
    "RepetitionPenalty",
    "RunnableArgument",
    "Seed",
    "Stop",
    "Temperature",
    "Threads",
    "TopK",
    "TopP",
    "Verify",
    "WeightPrecision",
    "parse_override",
    "split_names",
]

CheckpointArgument = Annotated[Path, typer.Argument(help="Liger checkpoint directory.")]
PackageArgument = Annotated[Path, typer.Argument(help="Package directory.")]
RunnableArgument = Annotated[Path, typer.Argument(help="Package or engine directory.")]
Adapters = Annotated[
    list[Path] | None, typer.Option("--adapter", metavar="DIR", help="LoRA adapter directory; repeatable.")
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        show_default="cuda if the package supports this GPU, else cpu",
        help="Device to run on: cpu or cuda.",
        rich_help_panel="Graph and device",
    ),
]
Lowering = Annotated[
    str | None,
    typer.Option(
        "--lowering",
        show_default="fused if it can run here",
        help="Graph to run: stock or fused; or wasm, webgpu or standard, made for other runtimes.",
        rich_help_panel="Graph and device",
    ),
]
WeightPrecision = Annotated[
    str,
    typer.Option(
        "--precision", help=f"Precision of the weights: {', '.join(PRECISIONS)}.", rich_help_panel="Precision"
    ),
]
HeadPrecision = Annotated[
    str | None,
    typer.Option(
        "--lm-head", show_default="--precision", help="Precision of the output head.", rich_help_panel="Precision"
    ),
]
BlockSize = Annotated[
    int,
    typer.Option(
        "--block-size",
        help=f"Weights that share a scale: {', '.join(map(str, BLOCK_SIZES))}.",
        rich_help_panel="Precision",
    ),
]
OF_PACKAGE = "as in the package"
Temperature = Annotated[
    float | None,
    typer.Option(
        show_default=OF_PACKAGE,
        help="Sampling temperature; 0 takes the most likely token.",
        rich_help_panel="Choice of tokens",
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(
        show_default=OF_PACKAGE,
        help="Sample from the k most likely tokens; 0 for all.",
        rich_help_panel="Choice of tokens",
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        show_default=OF_PACKAGE,
        help="Sample from the most likely tokens with this total probability.",
        rich_help_panel="Choice of tokens",
    ),
]
MinP = Annotated[
    float | None,
    typer.Option(
        show_default=OF_PACKAGE,
        help="Drop tokens below this fraction of the highest probability.",
        rich_help_panel="Choice of tokens",
    ),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(
        show_default=OF_PACKAGE, help="Penalty for repeated tokens; 1 for none.", rich_help_panel="Choice of tokens"
    ),
]
Seed = Annotated[
    int | None, typer.Option(show_default="random", help="Seed for sampling.", rich_help_panel="Choice of tokens")
]
Stop = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", help="Text that ends the output; repeatable.", rich_help_panel="Choice of tokens"),
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, show_default="chosen by ONNX Runtime", help="CPU threads.", rich_help_panel="Graph and device"),
]
Verify = Annotated[bool, typer.Option("--verify", help="Check the SHA-256 of every file, not only its size.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Also write the results to this JSON file.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")]


def split_names(values: list[str] | None) -> tuple[str, ...]:
    """Names from a repeatable option whose values may be lists separated by commas."""
    return tuple(name.strip() for value in values or () for name in value.split(",") if name.strip())


def parse_override(text: str) -> tuple[str, str]:
    """Pattern and precision from ``PATTERN=PRECISION``. Raises InputError."""
    pattern, separator, precision = text.rpartition("=")
    if not separator:
        raise InputError(f"{text!r} is not an override.", "Write PATTERN=PRECISION, such as '*.down_proj.weight=int8'.")
    return pattern, precision
